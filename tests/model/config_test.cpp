// A model's shape: derived values, refusals, and the counts printed and divided by.
#include "model/config.h"

#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "kernels/selective_scan.h"
#include "runtime/error.h"
#include "tests/model/small_models.h"

namespace dm {
namespace {

/// The error of `resolve` after `change`.
template <class Change>
std::string refusal(const Change& change) {
  ModelConfig config = sized(4, 256, 2);
  change(config);
  try {
    config.resolve();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    return error.what();
  }
  return "accepted";
}

TEST(ModelConfig, DerivesWhatIsNotGiven) {
  const ModelConfig config = sized(4, 250, 2);
  EXPECT_EQ(config.dt_rank, 16);  // ceil(250 / 16)
  EXPECT_EQ(config.gate_rank, 8);
  EXPECT_EQ(config.d_inner(), 500);
  EXPECT_EQ(sized(4, 1024, 2).gate_rank, 32);
  EXPECT_EQ(sized(4, 1024, 2).dt_rank, 64);
  ModelConfig given = sized(4, 250, 2);
  given.dt_rank = 3;
  given.gate_rank = 5;
  ModelConfig resolved = given;
  resolved.resolve();
  EXPECT_EQ(resolved, given);
}

TEST(ModelConfig, PadsTheVocabularyTo128WhateverTheGrid) {
  ModelConfig config;
  for (const auto& [tokens, padded] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 128}, {127, 128}, {128, 128}, {129, 256}, {32000, 32000}, {50280, 50304}}) {
    config.vocabulary = tokens;
    EXPECT_EQ(config.padded_vocabulary(), padded);
  }
}

TEST(ModelConfig, ALayerReadsAtMostWhatLiesBelow) {
  const ModelConfig config = sized(5, 64, 3);
  const std::vector<std::int64_t> expected{0, 1, 2, 3, 3};
  for (std::size_t layer = 0; layer < expected.size(); ++layer) {
    EXPECT_EQ(config.sources_of(static_cast<std::int64_t>(layer)), expected[layer]);
    EXPECT_EQ(sized(5, 64, 0).sources_of(static_cast<std::int64_t>(layer)), 0);
  }
}

TEST(ModelConfig, RefusesByTheOptionsName) {
  EXPECT_EQ(refusal([](ModelConfig& c) { c.layers = 0; }), "--model.layers is 0; it must lie between 1 and 4096");
  EXPECT_EQ(refusal([](ModelConfig& c) { c.d_model = -8; }), "--model.d_model is -8; it must lie between 1 and 1048576");
  EXPECT_EQ(refusal([](ModelConfig& c) { c.expand = 17; }), "--model.expand is 17; it must lie between 1 and 16");
  EXPECT_EQ(refusal([](ModelConfig& c) { c.d_state = 0; }), "--model.d_state is 0; it must lie between 1 and 256");
  EXPECT_EQ(refusal([](ModelConfig& c) { c.d_conv = 1; }), "--model.d_conv is 1; it must lie between 2 and 8");
  EXPECT_EQ(refusal([](ModelConfig& c) { c.dense_depth = 5; }), "--model.dense_depth is 5; it must lie between 0 and 4");
  EXPECT_EQ(refusal([](ModelConfig& c) { c.dense_depth = -1; }), "--model.dense_depth is -1; it must lie between 0 and 4");
  EXPECT_EQ(refusal([](ModelConfig& c) { c.dt_rank = -1; }), "--model.dt_rank is -1; it must lie between 1 and 512");
  EXPECT_EQ(refusal([](ModelConfig& c) { c.gate_rank = 513; }), "--model.gate_rank is 513; it must lie between 1 and 512");
  EXPECT_EQ(refusal([](ModelConfig& c) { c.vocabulary = 0; }),
            "--model.vocabulary is 0; it must lie between 1 and 16777216");
}

TEST(ModelConfig, RefusesWhatTheScanCannotHold) {
  constexpr std::int64_t kStates = 256, kMost = kMaxScanStates / kStates;  // layers that one scan can advance
  const auto with_depth = [](std::int64_t layers, std::int64_t depth, std::int64_t states) {
    return refusal([&](ModelConfig& c) {
      c.layers = layers;
      c.dense_depth = depth;
      c.d_state = states;
    });
  };
  EXPECT_EQ(
      with_depth(kMost + 1, kMost, kStates),
      fmt::format("--model.dense_depth {} with --model.d_state 256 advances {} states a channel; at most {} are possible, "
                  "and {} layers below",
                  kMost, kStates * (kMost + 1), kMaxScanStates, kMaxScanReaders));
  EXPECT_EQ(with_depth(kMost, kMost, kStates), "accepted") << "the last layer has one fewer below it";
  EXPECT_EQ(with_depth(kMaxScanReaders + 1, kMaxScanReaders, 1), "accepted");
  EXPECT_NE(with_depth(kMaxScanReaders + 2, kMaxScanReaders + 1, 1), "accepted");
}

TEST(ModelConfig, HasThePublishedNumbersOfParameters) {
  EXPECT_EQ(sized(24, 768, 0).parameters(), 129'135'360);
  EXPECT_EQ(sized(48, 1024, 0).parameters(), 371'516'416);
  EXPECT_EQ(sized(48, 1536, 0).parameters(), 793'204'224);
  EXPECT_EQ(sized(48, 2048, 0).parameters(), 1'372'178'432);
  EXPECT_EQ(sized(64, 2560, 0).parameters(), 2'768'345'600);
}

TEST(ModelConfig, AGateAddsItsTwoMatricesToEveryLayerButTheFirst) {
  // [32, 1024] and [2048, 32] in 47 layers, whether they read one layer or many.
  const std::int64_t gates = 47 * (32 * 1024 + 2048 * 32);
  for (const std::int64_t depth : {1, 2, 20}) EXPECT_EQ(sized(48, 1024, depth).parameters(), 371'516'416 + gates);
}

TEST(ModelConfig, CountsFloatingPointOperations) {
  ModelConfig config;
  config.layers = 3;
  config.d_model = 16;
  config.d_state = 4;
  config.dense_depth = 0;
  config.vocabulary = 100;
  config.resolve();
  // C 16, D 32, N 4, R 1, W 4: in_proj, convolution, x_proj, dt_proj, scan, skip and gating, out_proj.
  const double layer = 2 * 16 * 64 + 2 * 4 * 32 + 2 * 32 * 9 + 2 * 1 * 32 + 9 * 32 * 4 + 5 * 32 + 2 * 32 * 16;
  const double head = 2 * 16 * 100;
  EXPECT_EQ(config.training_flops_per_token(), 3 * (3 * layer + head));
  // Layers 1 and 2 have a gate (G 8) and read one and two layers.
  config.dense_depth = 2;
  EXPECT_EQ(config.training_flops_per_token(), 3 * (3 * layer + 2 * (2 * 8 * 48) + 3 * (8 * 32 * 4) + head));
}

}  // namespace
}  // namespace dm
