// The step's order of work, and which stream does it.
#include "launch/training_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "kernels/elementwise.h"
#include "runtime/copy.h"

namespace dm {

DType compute_dtype_of(const TrainOptions& options, DeviceKind device) {
  const std::string& wanted = options.train.dtype;
  if (wanted == "float32") return DType::f32;
  if (device == DeviceKind::cuda) return DType::bf16;
  if (wanted == "bfloat16") fail("--train.dtype bfloat16 needs a GPU; on the CPU use float32 or auto", ExitCode::usage);
  return DType::f32;
}

TrainingStep::TrainingStep(const TrainOptions& options, Grid& grid, Device device, Trace* trace, MemoryReport& memory)
    : options_(options),
      grid_(grid),
      memory_(memory),
      stream_(device, trace),
      communication_(device, trace),
      plan_(plan_memory(options, grid.data->size(), grid.tensor->size(), device.kind)) {
  const TrainOptions::Optimizer& o = options.optimizer;
  const PartitionedAdamW::Settings settings{.beta1 = static_cast<float>(o.beta1),
                                            .beta2 = static_cast<float>(o.beta2),
                                            .epsilon = static_cast<float>(o.epsilon),
                                            .weight_decay = static_cast<float>(o.weight_decay),
                                            .clip = static_cast<float>(o.clip)};
  const StorePlace place{grid.tensor->rank(), grid.tensor->size(), grid.data->rank(), grid.data->size()};
  store_.emplace(parameter_specs(options.model), place, device, memory, compute_dtype_of(options, device.kind));
  optimizer_.emplace(*store_, grid, settings, memory);
  model_.emplace(options.model, *store_, *grid.tensor);
  results_ = Buffer("step results", 2 * size_of(DType::f32), device, memory);
  host_results_ = Buffer::pinned("step results on the host", 2 * size_of(DType::f32), memory);
  arena_.emplace(Buffer("activations", plan_.activation_bytes, device, memory));
  gathered_.resize(static_cast<std::size_t>(store_->partition().blocks()));
}

TrainingStep::DeviceBatch TrainingStep::upload(Sequences& sequences) {
  const std::int64_t T = options_.train.sequence, tokens = sequences.count * T;
  const Shape shape{sequences.count, T};
  if (stream_.device().kind == DeviceKind::cpu) {
    return {Tensor::of(sequences.tokens.data(), shape), Tensor::of(sequences.targets.data(), shape)};
  }
  const std::int64_t bytes = tokens * size_of(DType::i32);
  if (host_tokens_.bytes() < 2 * bytes) {
    host_tokens_ = Buffer::pinned("tokens on the host", 2 * bytes, memory_);
    device_tokens_ = Buffer("tokens", 2 * bytes, stream_.device(), memory_);
  }
  const Tensor host = host_tokens_.tensor({2, sequences.count, T}, DType::i32);
  const Tensor device = device_tokens_.tensor({2, sequences.count, T}, DType::i32);
  std::memcpy(host.slice(0, 1).data(), sequences.tokens.data(), static_cast<std::size_t>(bytes));
  std::memcpy(host.slice(1, 1).data(), sequences.targets.data(), static_cast<std::size_t>(bytes));
  copy(stream_, host, device);
  return {device.slice(0, 1).reshaped(shape), device.slice(1, 1).reshaped(shape)};
}

void TrainingStep::reduce(int block) {
  ready_.record(stream_);
  ready_.hold(communication_);
  optimizer_->reduce_block(communication_, block);
}

void TrainingStep::gather(int block) {
  ready_.record(stream_);
  ready_.hold(communication_);
  optimizer_->gather_block(communication_, block);
  gathered_[static_cast<std::size_t>(block)].record(communication_);
}

void TrainingStep::accumulate(Sequences& sequences, const AtPoint& at_point) {
  const std::int64_t T = options_.train.sequence, micro = micro_batch_of(options_.train, grid_.data->size());
  const DeviceBatch batch = upload(sequences);
  const float scale = 1.0f / static_cast<float>(options_.train.batch * T);
  for (std::int64_t begin = 0; begin < sequences.count; begin += micro) {
    at_point("forward");
    const bool last = begin + micro == sequences.count;
    const LanguageModel::BlockHooks hooks{
        .before_use = [&](int block) { gathered_[static_cast<std::size_t>(block)].hold(stream_); },
        .gradient_done =
            [&](int block) {
              at_point("backward");
              if (!last) return;
              at_point("reduce");
              reduce(block);
            }};
    model_->forward_backward(stream_, *arena_, batch.tokens.slice(begin, micro), batch.targets.slice(begin, micro), scale,
                             model_options(options_.train), results().flat(0, 1), hooks);
  }
}

const float* TrainingStep::read_results() {
  const Tensor host = host_results_.tensor({2}, DType::f32);
  copy(stream_, results(), host);
  stream_.synchronize();
  return host.as<float>();
}

TrainingStep::Result TrainingStep::run(Sequences& sequences, double lr, const AtPoint& at_point) {
  const Tensor loss_sum = results().flat(0, 1), norm_squared = results().flat(1, 1);
  fill(stream_, results(), 0.0f);
  fill(stream_, store_->gradients(), 0.0f);
  accumulate(sequences, at_point);

  Event reduced;
  reduced.record(communication_);
  reduced.hold(stream_);
  at_point("gradient");
  optimizer_->add_gradient_norm_squared(stream_, norm_squared);
  grid_.data->all_reduce(stream_, loss_sum);
  optimizer_->update(stream_, static_cast<float>(lr), loss_sum, norm_squared, [&](int block) { gather(block); });

  const float* found = read_results();
  Result result;
  result.loss = static_cast<double>(found[0]) / static_cast<double>(options_.train.batch * options_.train.sequence);
  result.gradient_norm = std::sqrt(static_cast<double>(found[1]));
  result.updated = std::isfinite(result.loss) && std::isfinite(result.gradient_norm);
  return result;
}

double TrainingStep::evaluate(Sequences& sequences) {
  const std::int64_t T = options_.train.sequence, micro = micro_batch_of(options_.train, grid_.data->size());
  communication_.synchronize();  // values are complete
  const DeviceBatch batch = upload(sequences);
  const Tensor loss_sum = results().flat(0, 1);
  fill(stream_, loss_sum, 0.0f);
  for (std::int64_t at = 0; at < sequences.count; at += micro) {
    const std::int64_t count = std::min(micro, sequences.count - at);
    model_->evaluate(stream_, *arena_, batch.tokens.slice(at, count), batch.targets.slice(at, count),
                     model_options(options_.train), loss_sum);
  }
  grid_.data->all_reduce(stream_, loss_sum);
  return static_cast<double>(read_results()[0]) / static_cast<double>(sequences.count * T * grid_.data->size());
}

}  // namespace dm
