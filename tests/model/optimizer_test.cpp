// AdamW over the partitioned flat buffers against the formula in double, and the pieces of its state.
#include "model/optimizer.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tests/model/model_rank.h"

namespace dm {
namespace {

constexpr PartitionedAdamW::Settings kSettings{
    .beta1 = 0.8f, .beta2 = 0.9f, .epsilon = 1e-6f, .weight_decay = 0.3f, .clip = 2.0f};
constexpr float kLearningRate = 1e-2f;

/// One parameter in double.
struct Oracle {
  std::vector<double> value, first, second;

  void step(const std::vector<float>& gradient, double scale, double weight_decay, int number) {
    const auto beta1 = static_cast<double>(kSettings.beta1), beta2 = static_cast<double>(kSettings.beta2);
    const auto lr = static_cast<double>(kLearningRate);
    for (std::size_t i = 0; i < value.size(); ++i) {
      const double g = scale * static_cast<double>(gradient[i]);
      first[i] = beta1 * first[i] + (1 - beta1) * g;
      second[i] = beta2 * second[i] + (1 - beta2) * g * g;
      const double m = first[i] / (1 - std::pow(beta1, number)), v = second[i] / (1 - std::pow(beta2, number));
      value[i] -= lr * (m / (std::sqrt(v) + static_cast<double>(kSettings.epsilon)) + weight_decay * value[i]);
    }
  }
};

/// Gradients of step `number` in every parameter, zero in the padding between, as a backward leaves them.
void set_gradients(ParameterStore& store, int number) {
  const Tensor all = store.gradients();
  std::fill_n(all.as<float>(), all.numel(), 0.0f);
  for (const ParameterStore::Entry& entry : store.entries()) {
    const RandomStream random(static_cast<std::uint64_t>(number), entry.spec.name);
    float* gradient = store.parameter(entry.spec.name).gradient.as<float>();
    for (std::int64_t i = 0; i < entry.range.size; ++i) gradient[i] = random.normal(static_cast<std::uint64_t>(i));
  }
}

TEST(PartitionedAdamW, FollowsTheFormulaWithoutDecayWhereThereIsNone) {
  const ModelConfig config = small_config(2);
  ModelRank rank(config, Grid::plan(1, 1), open_specs(config), kSettings);
  std::map<std::string, Oracle> oracles;
  for (const ParameterStore::Entry& entry : rank.store().entries()) {
    const float* values = rank.store().parameter(entry.spec.name).value.as<float>();
    const auto size = static_cast<std::size_t>(entry.range.size);
    oracles[entry.spec.name] = {{values, values + size}, std::vector<double>(size), std::vector<double>(size)};
  }
  for (int number = 1; number <= 6; ++number) {
    set_gradients(rank.store(), number);
    double squares = 0;
    for (const float g : rank.gradients()) squares += static_cast<double>(g) * static_cast<double>(g);
    const double scale = static_cast<double>(kSettings.clip) / std::sqrt(squares);
    ASSERT_LT(scale, 1) << "clipping is part of the test";
    for (const ParameterStore::Entry& entry : rank.store().entries()) {
      const std::vector<float> gradient = rank.gradient(entry.spec.name);
      const bool no_decay = entry.local_shape.rank() == 1 || entry.spec.name.ends_with("A_log");
      const double decay = no_decay ? 0.0 : static_cast<double>(kSettings.weight_decay);
      oracles[entry.spec.name].step(gradient, scale, decay, number);
    }
    float norm_squared = 0;
    rank.optimizer().add_gradient_norm_squared(rank.stream(), Tensor::of(&norm_squared, {1}));
    EXPECT_NEAR(static_cast<double>(norm_squared) / squares, 1, 1e-6);
    float loss = 1;
    rank.optimizer().update(rank.stream(), kLearningRate, Tensor::of(&loss, {1}), Tensor::of(&norm_squared, {1}), {});
  }
  for (const StatePiece& piece : rank.optimizer().pieces_to_save(rank.stream())) {
    const Oracle& oracle = oracles[piece.parameter];
    const std::vector<double>& expected = piece.kind == StateKind::value          ? oracle.value
                                          : piece.kind == StateKind::first_moment ? oracle.first
                                                                                  : oracle.second;
    const std::vector<float> found(piece.data.as<float>(), piece.data.as<float>() + piece.data.numel());
    const std::int64_t columns = as_matrix(piece.global_shape)[1];
    const auto begin = expected.begin() + piece.where.row * columns + piece.where.column;
    EXPECT_LT(relative_error(found, {begin, begin + piece.where.numel()}), 1e-6)
        << piece.parameter << " " << name_of(piece.kind);
  }
}

TEST(PartitionedAdamW, TwoRunsGiveTheSameBits) {
  const ModelConfig config = small_config(2);
  const Batch batch = Batch::random(3, 4, 33, config.vocabulary);
  std::vector<std::vector<float>> values;
  for (int run = 0; run < 2; ++run) {
    ModelRank rank(config);
    for (int number = 1; number <= 3; ++number) {
      rank.update(rank.reduced_gradients(batch, /*micro=*/2, {}), 1e-2);
    }
    values.push_back(rank.values());
  }
  EXPECT_EQ(values[0], values[1]);
}

TEST(PartitionedAdamW, ALearningModelLearns) {
  ModelRank rank(small_config(2));
  const Batch batch = Batch::random(3, 4, 33, rank.config().vocabulary);
  const double before = rank.evaluate(batch);
  for (int number = 1; number <= 20; ++number) rank.update(rank.reduced_gradients(batch, 4, {}), 1e-2);
  EXPECT_LT(rank.evaluate(batch), 0.7 * before);
}

/// How often each element of each parameter and kind is among `pieces`.
using Coverage = std::map<std::pair<std::string, StateKind>, std::vector<int>>;

void count(Coverage& coverage, const std::vector<StatePiece>& pieces) {
  for (const StatePiece& piece : pieces) {
    ASSERT_EQ(piece.data.numel(), piece.where.numel());
    const std::int64_t columns = as_matrix(piece.global_shape)[1];
    std::vector<int>& counts = coverage[{piece.parameter, piece.kind}];
    counts.resize(static_cast<std::size_t>(piece.global_shape.numel()));
    for (std::int64_t i = 0; i < piece.where.numel(); ++i) {
      const std::int64_t row = piece.where.row + i / piece.where.columns,
                         column = piece.where.column + i % piece.where.columns;
      ++counts.at(static_cast<std::size_t>(row * columns + column));
    }
  }
}

TEST(PartitionedAdamW, PiecesOfAllRanksTileEveryParameterOnce) {
  const ModelConfig config = small_config(2);
  for (const int data_size : {1, 2, 3, 4, 7}) {
    for (const int tensor_size : {1, 2, 4}) {
      Coverage saved, loaded;
      for (int rank = 0; rank < data_size * tensor_size; ++rank) {
        MemoryReport report;
        Stream stream(Device::cpu());
        Grid paper = Grid::plan(data_size, tensor_size);  // pieces depend on the store's place alone
        const StorePlace place{rank % tensor_size, tensor_size, rank / tensor_size, data_size};
        const ParameterStore store(parameter_specs(config), place, Device::cpu(), report);
        PartitionedAdamW optimizer(store, paper, {}, report);
        count(saved, optimizer.pieces_to_save(stream));
        count(loaded, optimizer.pieces_to_load());
      }
      for (const ParameterSpec& spec : parameter_specs(config)) {
        const auto size = static_cast<std::size_t>(spec.shape.numel());
        const int copies = spec.shard.axis == Shard::Axis::none ? tensor_size : 1;
        for (const StateKind kind : {StateKind::value, StateKind::first_moment, StateKind::second_moment}) {
          const std::pair key{spec.name, kind};
          EXPECT_EQ(saved[key], std::vector<int>(size, 1)) << spec.name << " " << data_size << " × " << tensor_size;
          EXPECT_EQ(loaded[key], std::vector<int>(size, copies)) << spec.name << " " << data_size << " × " << tensor_size;
        }
      }
      EXPECT_EQ(saved.size(), 3 * parameter_specs(config).size());
    }
  }
}

}  // namespace
}  // namespace dm
