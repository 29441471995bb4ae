// Parameters: names and shapes of public checkpoints, first values on any grid, and the layout of the flat buffers.
#include "model/parameters.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "runtime/error.h"
#include "tests/kernels/oracle.h"
#include "tests/model/model_rank.h"

namespace dm {
namespace {

TEST(ParameterSpecs, AreThoseOfAPublicMambaCheckpoint) {
  std::map<std::string, Shape> expected{{"backbone.embedding.weight", {50304, 768}}, {"backbone.norm_f.weight", {768}}};
  for (int layer = 0; layer < 24; ++layer) {
    const std::string prefix = "backbone.layers." + std::to_string(layer) + ".";
    expected.merge(std::map<std::string, Shape>{{prefix + "norm.weight", {768}},
                                                {prefix + "mixer.in_proj.weight", {3072, 768}},
                                                {prefix + "mixer.conv1d.weight", {1536, 1, 4}},
                                                {prefix + "mixer.conv1d.bias", {1536}},
                                                {prefix + "mixer.x_proj.weight", {80, 1536}},
                                                {prefix + "mixer.dt_proj.weight", {1536, 48}},
                                                {prefix + "mixer.dt_proj.bias", {1536}},
                                                {prefix + "mixer.A_log", {1536, 16}},
                                                {prefix + "mixer.D", {1536}},
                                                {prefix + "mixer.out_proj.weight", {768, 1536}}});
  }
  std::map<std::string, Shape> found;
  for (const ParameterSpec& spec : parameter_specs(sized(24, 768, 0))) found.emplace(spec.name, spec.shape);
  EXPECT_EQ(found, expected);
}

TEST(ParameterSpecs, DenseGatesStandInLayersThatRead) {
  std::map<std::string, ParameterSpec> gates;
  for (const ParameterSpec& spec : parameter_specs(sized(24, 768, 2))) {
    if (spec.name.find("dense_gate") != std::string::npos) gates.emplace(spec.name, spec);
  }
  EXPECT_EQ(gates.size(), 2u * 23);
  EXPECT_EQ(gates.at("backbone.layers.1.mixer.dense_gate.fc1.weight").shape, (Shape{24, 768}));
  const ParameterSpec& fc2 = gates.at("backbone.layers.23.mixer.dense_gate.fc2.weight");
  EXPECT_EQ(fc2.shape, (Shape{1536, 24}));
  EXPECT_EQ(fc2.init.kind, Initializer::Kind::constant);
  EXPECT_EQ(fc2.init.scale, 0.0f);
}

TEST(ParameterSpecs, DecayMatricesAndNothingElse) {
  for (const ParameterSpec& spec : parameter_specs(sized(3, 64, 2))) {
    const bool is_matrix = spec.name.find("proj.weight") != std::string::npos ||
                           spec.name.find("dense_gate") != std::string::npos || spec.name.ends_with("conv1d.weight") ||
                           spec.name.ends_with("embedding.weight");
    EXPECT_EQ(spec.decay, is_matrix) << spec.name;
  }
}

TEST(ParameterSpecs, SumUpToTheConfigsCount) {
  for (const auto& [layers, width, depth] : std::vector<std::array<std::int64_t, 3>>{
           {24, 768, 0}, {48, 1024, 1}, {48, 1536, 2}, {48, 2048, 20}, {64, 2560, 2}, {1, 64, 1}}) {
    const ModelConfig config = sized(layers, width, depth);
    std::int64_t sum = 0;
    for (const ParameterSpec& spec : parameter_specs(config)) sum += spec.shape.numel();
    EXPECT_EQ(sum, config.parameters() + (config.padded_vocabulary() - config.vocabulary) * width);
  }
}

TEST(ParameterSpecs, BlocksAreEmbeddingMatricesOfEachLayerAndAllElse) {
  const std::vector<ParameterSpec> specs = parameter_specs(sized(3, 64, 2));
  EXPECT_EQ(specs.front().block, 0);
  EXPECT_EQ(specs.back().block, 4);
  EXPECT_TRUE(std::is_sorted(specs.begin(), specs.end(), [](const auto& a, const auto& b) { return a.block < b.block; }));
  for (const ParameterSpec& spec : specs) {
    const auto at = spec.name.find("layers.");
    const bool is_matrix = spec.shape.rank() == 2 && !spec.name.ends_with("A_log");
    if (at != std::string::npos) {
      EXPECT_EQ(spec.block, is_matrix ? std::stoi(spec.name.substr(at + 7)) + 1 : 4) << spec.name;
    }
  }
}

TEST(BlockPartition, SlicesOfTheDataRanksTileEveryBlock) {
  const std::vector<std::int64_t> sizes{1, 63, 64, 65, 1000, 4096};
  for (const int ranks : {1, 2, 3, 4, 7}) {
    std::int64_t at = 0;
    for (int block = 0; block < static_cast<int>(sizes.size()); ++block) {
      std::int64_t owned_before = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const BlockPartition partition(sizes, rank, ranks);
        const FlatRange whole = partition.block(block), mine = partition.owned(block);
        EXPECT_EQ(whole.begin, at);
        EXPECT_GE(whole.size, sizes[static_cast<std::size_t>(block)]);
        EXPECT_LT(whole.size, sizes[static_cast<std::size_t>(block)] + 64 * ranks);
        EXPECT_EQ(mine.begin, whole.begin + owned_before);
        EXPECT_EQ(mine.begin % 64, 0) << "slices start at multiples of 256 bytes";
        owned_before += mine.size;
        if (rank == ranks - 1) {
          EXPECT_EQ(mine.end(), whole.end());
          at = whole.end();
        }
      }
    }
    const BlockPartition partition(sizes, 0, ranks);
    EXPECT_EQ(partition.blocks(), static_cast<int>(sizes.size()));
    EXPECT_EQ(partition.elements(), at);
    EXPECT_EQ(partition.owned_elements() * ranks, at);
  }
}

TEST(BlockPartition, StatesOfOwnedSlicesFollowOneAnother) {
  for (const int ranks : {1, 2, 3, 4, 7}) {
    for (int rank = 0; rank < ranks; ++rank) {
      const BlockPartition partition({1, 640, 65}, rank, ranks);
      std::int64_t at = 0;
      for (int block = 0; block < partition.blocks(); ++block) {
        EXPECT_EQ(partition.owned_offset(block), at);
        at += partition.owned(block).size;
      }
      EXPECT_EQ(partition.owned_elements(), at);
    }
  }
  EXPECT_THROW(BlockPartition({1}, 2, 2), Error);
}

TEST(ParameterStore, ParametersAreAlignedAndApart) {
  MemoryReport report;
  const ModelConfig config = small_config(2);
  for (const int data_size : {1, 2, 3, 4, 7}) {
    for (const int tensor_size : {1, 2, 4}) {
      const ParameterStore store(parameter_specs(config), {0, tensor_size, data_size - 1, data_size}, Device::plan(),
                                 report);
      std::int64_t end = 0;
      for (const ParameterStore::Entry& entry : store.entries()) {
        EXPECT_EQ(entry.range.begin % 64, 0) << entry.spec.name;
        EXPECT_GE(entry.range.begin, end) << entry.spec.name;
        EXPECT_EQ(entry.range.size, entry.local_shape.numel());
        const FlatRange block = store.partition().block(entry.spec.block);
        EXPECT_GE(entry.range.begin, block.begin) << entry.spec.name;
        EXPECT_LE(entry.range.end(), block.end()) << entry.spec.name;
        end = entry.range.end();
      }
      EXPECT_EQ(store.partition().blocks(), config.layers + 2);
      EXPECT_EQ(store.gradients().numel(), store.partition().elements());
    }
  }
}

TEST(ParameterStore, EveryTensorSizeStartsWithTheBitsOfOneRank) {
  MemoryReport report;
  const ModelConfig config = small_config(2);
  ParameterStore whole(parameter_specs(config), {}, Device::cpu(), report);
  Stream stream(Device::cpu());
  whole.initialize(stream, 3);
  for (const int ranks : {1, 2, 4}) {
    std::map<std::string, std::vector<int>> seen;
    for (int rank = 0; rank < ranks; ++rank) {
      ParameterStore part(parameter_specs(config), {rank, ranks, 1, 3}, Device::cpu(), report);
      part.initialize(stream, 3);
      for (const ParameterStore::Entry& entry : part.entries()) {
        const float* global = whole.parameter(entry.spec.name).value.as<float>();
        std::vector<int>& count = seen[entry.spec.name];
        count.resize(static_cast<std::size_t>(entry.spec.shape.numel()));
        std::int64_t differences = 0;
        for_each_element(part, entry, entry.range, [&](std::int64_t flat, std::int64_t at) {
          differences += part.parameter(entry.spec.name).value.as<float>()[flat - entry.range.begin] == global[at] ? 0 : 1;
          ++count[static_cast<std::size_t>(at)];
        });
        EXPECT_EQ(differences, 0) << entry.spec.name << " on rank " << rank << " of " << ranks;
      }
    }
    for (const ParameterStore::Entry& entry : whole.entries()) {
      const int copies = entry.spec.shard.axis == Shard::Axis::none ? ranks : 1;
      const std::vector<int>& count = seen[entry.spec.name];
      EXPECT_EQ(std::count(count.begin(), count.end(), copies), entry.spec.shape.numel()) << entry.spec.name;
    }
  }
}

TEST(ParameterStore, StartsWithMambasInitialisation) {
  MemoryReport report;
  ModelConfig config = small_config(2, /*layers=*/4);
  config.d_model = 64;
  ParameterStore store(parameter_specs(config), {}, Device::cpu(), report);
  Stream stream(Device::cpu());
  store.initialize(stream, 11);
  const std::string mixer = mixer_prefix(2);
  const auto values = [&](const std::string& name) {
    const Tensor value = store.parameter(name).value;
    return std::vector<float>(value.as<float>(), value.as<float>() + value.numel());
  };
  /// Uniform within ±bound, and filling it: standard deviation bound / √3.
  const auto expect_uniform = [&](const std::string& name, double bound) {
    double squares = 0, largest = 0;
    const std::vector<float> all = values(name);
    for (const float value : all) {
      squares += static_cast<double>(value) * static_cast<double>(value);
      largest = std::max(largest, std::abs(static_cast<double>(value)));
    }
    EXPECT_LE(largest, bound * (1 + 1e-6)) << name;
    EXPECT_NEAR(std::sqrt(squares / static_cast<double>(all.size())) / (bound / std::sqrt(3.0)), 1, 0.1) << name;
  };
  expect_uniform(mixer + "in_proj.weight", 1 / std::sqrt(64.0));
  expect_uniform(mixer + "x_proj.weight", 1 / std::sqrt(128.0));
  expect_uniform(mixer + "dt_proj.weight", 1 / std::sqrt(static_cast<double>(config.dt_rank)));
  expect_uniform(mixer + "conv1d.weight", 1 / std::sqrt(4.0));
  expect_uniform(mixer + "out_proj.weight", 1 / std::sqrt(128.0) / std::sqrt(4.0));
  expect_uniform(mixer + "dense_gate.fc1.weight", 1 / std::sqrt(64.0));
  for (const float value : values(mixer + "dense_gate.fc2.weight")) EXPECT_EQ(value, 0.0f);
  for (const float value : values(mixer + "D")) EXPECT_EQ(value, 1.0f);
  for (const float value : values("backbone.norm_f.weight")) EXPECT_EQ(value, 1.0f);
  const std::vector<float> A_log = values(mixer + "A_log");
  for (std::size_t i = 0; i < A_log.size(); ++i) EXPECT_FLOAT_EQ(A_log[i], std::log(static_cast<float>(i % 4 + 1)));
  for (const float bias : values(mixer + "dt_proj.bias")) {
    const double dt = std::log1p(std::exp(static_cast<double>(bias)));
    EXPECT_GE(dt, 1e-3 * (1 - 1e-4));
    EXPECT_LE(dt, 1e-1 * (1 + 1e-4));
  }
  double squares = 0;
  for (const float value : values("backbone.embedding.weight")) squares += static_cast<double>(value * value);
  EXPECT_NEAR(std::sqrt(squares / (128 * 64)) / 0.02, 1, 0.1);
}

TEST(ParameterStore, NamesWhatDoesNotExistOrDivide) {
  MemoryReport report;
  const ModelConfig config = small_config(2);
  const ParameterStore store(parameter_specs(config), {}, Device::plan(), report);
  EXPECT_EQ(oracle::error_of([&] { store.parameter("backbone.layers.0.mixer.dense_gate.fc1.weight"); }),
            "the model has no parameter backbone.layers.0.mixer.dense_gate.fc1.weight");
  EXPECT_EQ(oracle::error_of([&] {
              ParameterStore(parameter_specs(config), {0, 5, 0, 1}, Device::plan(), report);
            }),
            "backbone.embedding.weight of shape [128, 24] does not divide over 5 tensor ranks; change --parallel.tensor or "
            "the model's width");
}

}  // namespace
}  // namespace dm
