// One rank of a grid with a small model on it: what every test of the model, its gradients and its parallelism drives.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "model/language_model.h"
#include "model/optimizer.h"
#include "parallel/grid.h"
#include "runtime/copy.h"
#include "runtime/random.h"
#include "tests/model/small_models.h"

namespace dm {

/// Calls visit(element of the flat buffers, element of the global parameter) for the part of `entry` inside `range`.
template <class Visit>
void for_each_element(const ParameterStore& store, const ParameterStore::Entry& entry, FlatRange range, const Visit& visit) {
  const std::int64_t begin = std::max(range.begin, entry.range.begin), end = std::min(range.end(), entry.range.end());
  if (begin >= end) return;
  const StorePlace& place = store.place();
  const std::int64_t columns = as_matrix(entry.spec.shape)[1];
  std::int64_t flat = begin;
  for (const Rectangle& part : global_rectangles(entry.spec.shape, entry.spec.shard, place.tensor_rank, place.tensor_size,
                                                 begin - entry.range.begin, end - begin)) {
    for (std::int64_t i = 0; i < part.numel(); ++i, ++flat) {
      visit(flat, (part.row + i / part.columns) * columns + part.column + i % part.columns);
    }
  }
}

/// The gradient norm above which updates are clipped.
inline constexpr float kClip = 0.5f;

class ModelRank {
 public:
  using Options = LanguageModel::Options;

  /// `grid` is made for `device`.
  ModelRank(const ModelConfig& config, Grid grid, std::vector<ParameterSpec> specs,
            PartitionedAdamW::Settings settings = {.clip = kClip}, Device device = Device::cpu(), DType compute = DType::f32)
      : config_(config),
        grid_(std::move(grid)),
        stream_(device),
        store_(std::move(specs), {grid_.tensor->rank(), grid_.tensor->size(), grid_.data->rank(), grid_.data->size()},
               device, report_, compute),
        model_(config_, store_, *grid_.tensor, /*worth_halving=*/1),
        optimizer_(store_, grid_, settings, report_),
        results_("results", 2 * size_of(DType::f32), device, report_) {
    use_one_blas_thread();
    store_.initialize(stream_, /*seed=*/7);
  }
  /// A grid of this process alone.
  explicit ModelRank(const ModelConfig& config, Device device = Device::cpu(), DType compute = DType::f32)
      : ModelRank(config, Grid::plan(1, 1), open_specs(config), {.clip = kClip}, device, compute) {}

  /// Runs `work(stream, arena)` on a plan, then on an arena of exactly the planned size that is full of NaN: reading
  /// what nobody wrote shows in every result. Guard words behind the arena must stay.
  template <class Work>
  void with_arena(const Work& work) {
    constexpr std::int64_t kGuardBytes = 1024;
    constexpr std::uint8_t kNan = 0xff;
    Arena plan(device().kind);
    Stream planning(Device::plan(device().kind));
    work(planning, plan);
    Buffer memory("activations", plan.peak() + kGuardBytes, device(), report_);
    const Tensor bytes = memory.tensor({memory.bytes()}, DType::u8);
    std::vector<std::uint8_t> image(static_cast<std::size_t>(memory.bytes()), kNan);
    dm::copy(stream_, Tensor::of(image.data(), bytes.shape()), bytes);
    stream_.synchronize();
    Arena arena(std::move(memory));
    work(stream_, arena);
    EXPECT_EQ(arena.peak(), plan.peak());
    EXPECT_EQ(arena.used(), 0);
    const std::vector<std::uint8_t> guard = copy<std::uint8_t>(bytes.slice(plan.peak(), kGuardBytes));
    EXPECT_TRUE(std::all_of(guard.begin(), guard.end(), [](std::uint8_t byte) { return byte == kNan; }));
  }

  /// Replaces the gradients unless `options` say otherwise; returns the mean loss. Of this tensor group alone.
  double forward_backward(const Batch& batch, const Options& options = {}) {
    const Uploaded at(*this, batch);
    const auto rows = static_cast<float>(batch.shape.numel());
    fill(stream_, results(), 0.0f);
    with_arena([&](Stream& stream, Arena& arena) {
      model_.forward_backward(stream, arena, at.tokens, at.targets, 1.0f / rows, options, loss_sum(), {});
    });
    return static_cast<double>(copy(results())[0]) / static_cast<double>(rows);
  }

  double evaluate(const Batch& batch, const Options& options = {}) {
    const Uploaded at(*this, batch);
    fill(stream_, results(), 0.0f);
    with_arena(
        [&](Stream& stream, Arena& arena) { model_.evaluate(stream, arena, at.tokens, at.targets, options, loss_sum()); });
    return static_cast<double>(copy(results())[0]) / static_cast<double>(batch.shape.numel());
  }

  /// This rank's columns of the logits, row by row.
  std::vector<float> logits(const Batch& batch) {
    const Uploaded at(*this, batch);
    const Shape shape{batch.shape[0], batch.shape[1], model_.vocabulary().rows()};
    const Buffer owner("logits", shape.numel() * size_of(DType::f32), device(), report_);
    const Tensor out = owner.tensor(shape, DType::f32);
    with_arena([&](Stream& stream, Arena& arena) { model_.logits(stream, arena, at.tokens, out); });
    return copy(out);
  }

  struct Result {
    double loss = 0;
    double gradient_norm = 0;
  };
  /// The gradients of a step's whole batch, of which this data rank takes its share in micro-batches of `micro`, reduced
  /// into the owned slices as the trainer does.
  Result reduced_gradients(const Batch& batch, std::int64_t micro, const Options& options) {
    const std::int64_t share = batch.shape[0] / grid_.data->size(), first = grid_.data->rank() * share;
    const Shape micro_shape{micro, batch.shape[1]};
    const Device planned = Device::plan(device().kind);
    Arena plan(device().kind);
    Stream planning(planned);
    const Tensor ids(nullptr, micro_shape, DType::i32, planned);
    model_.forward_backward(planning, plan, ids, ids, 1.0f, options, Tensor(nullptr, {1}, DType::f32, planned), {});
    Arena arena(Buffer("activations", plan.peak(), device(), report_));

    const Uploaded at(*this, batch);
    const Tensor norm_squared = results().flat(1, 1);
    const auto rows = static_cast<double>(batch.shape.numel());
    fill(stream_, results(), 0.0f);
    for (std::int64_t begin = first; begin < first + share; begin += micro) {
      const bool last = begin + micro == first + share;
      Options now = options;
      now.gradients = begin == first ? Accumulate::overwrite : Accumulate::add;
      model_.forward_backward(stream_, arena, at.tokens.slice(begin, micro), at.targets.slice(begin, micro),
                              static_cast<float>(1 / rows), now, loss_sum(),
                              {.before_use = {}, .gradient_done = [&](int block) {
                                 if (last) optimizer_.reduce_block(stream_, block);
                               }});
    }
    optimizer_.add_gradient_norm_squared(stream_, norm_squared);
    grid_.data->all_reduce(stream_, loss_sum());
    const std::vector<float> sums = copy(results());
    return {static_cast<double>(sums[0]) / rows, std::sqrt(static_cast<double>(sums[1]))};
  }

  /// The next update with what `reduced_gradients` left.
  void update(Result result, double lr) {
    float sums[2] = {static_cast<float>(result.loss), static_cast<float>(result.gradient_norm * result.gradient_norm)};
    dm::copy(stream_, Tensor::of(sums, {2}), results());
    optimizer_.update(stream_, static_cast<float>(lr), loss_sum(), results().flat(1, 1),
                      [&](int block) { optimizer_.gather_block(stream_, block); });
  }

  const ModelConfig& config() const { return config_; }
  Grid& grid() { return grid_; }
  Stream& stream() { return stream_; }
  MemoryReport& report() { return report_; }
  ParameterStore& store() { return store_; }
  const ParameterStore& store() const { return store_; }
  const LanguageModel& model() const { return model_; }
  PartitionedAdamW& optimizer() { return optimizer_; }
  const PartitionedAdamW& optimizer() const { return optimizer_; }

  Device device() const { return stream_.device(); }
  std::vector<float> value(const std::string& name) const { return copy(store_.parameter(name).value); }
  std::vector<float> gradient(const std::string& name) const { return copy(store_.parameter(name).gradient); }
  std::vector<float> gradients() const { return copy(store_.gradients()); }
  std::vector<float> values() const {
    std::vector<float> all;
    for (int block = 0; block < store_.partition().blocks(); ++block) {
      const std::vector<float> values = copy(store_.values(block));
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  }

 private:
  /// A batch in the device's memory.
  struct Uploaded {
    Uploaded(ModelRank& rank, const Batch& batch)
        : owner("batch", 2 * batch.shape.numel() * size_of(DType::i32), rank.device(), rank.report_),
          tokens(owner.tensor({2, batch.shape[0], batch.shape[1]}, DType::i32).slice(0, 1).reshaped(batch.shape)),
          targets(owner.tensor({2, batch.shape[0], batch.shape[1]}, DType::i32).slice(1, 1).reshaped(batch.shape)) {
      dm::copy(rank.stream_, batch.token_tensor(), tokens);
      dm::copy(rank.stream_, batch.target_tensor(), targets);
    }
    Buffer owner;
    Tensor tokens, targets;
  };

  /// (Σ loss, squared gradient norm) on the device.
  Tensor results() const { return results_.tensor({2}, DType::f32); }
  Tensor loss_sum() const { return results().flat(0, 1); }
  /// To the host; waits for the stream.
  template <class T = float>
  std::vector<T> copy(const Tensor& tensor) const {
    std::vector<T> values(static_cast<std::size_t>(tensor.numel()));
    dm::copy(stream_, tensor, Tensor::of(values.data(), tensor.shape()));
    stream_.synchronize();
    return values;
  }

  ModelConfig config_;
  Grid grid_;
  mutable Stream stream_;
  MemoryReport report_;
  ParameterStore store_;
  LanguageModel model_;
  PartitionedAdamW optimizer_;
  Buffer results_;
};

}  // namespace dm
