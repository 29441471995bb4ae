// What the model promises as a whole: causality, plain Mamba at depth 0, recompute, exact plans, chunks, the same bits.
#include "model/language_model.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "tests/kernels/oracle.h"
#include "tests/model/model_rank.h"

namespace dm {
namespace {

using oracle::same_bits;

Batch some_batch(std::int64_t sequences = 2, std::int64_t length = 37) {
  return Batch::random(5, sequences, length, small_config(0).vocabulary);
}

/// Rows [begin, begin + count) of logits.
std::span<const float> rows_of(const std::vector<float>& logits, const Batch& batch, std::int64_t begin,
                               std::int64_t count) {
  const std::int64_t columns = static_cast<std::int64_t>(logits.size()) / batch.shape.numel();
  return {logits.data() + begin * columns, static_cast<std::size_t>(count * columns)};
}

class WholeModel : public ::testing::TestWithParam<std::int64_t> {
 protected:
  ModelRank rank_{small_config(GetParam())};
};
INSTANTIATE_TEST_SUITE_P(DenseDepth, WholeModel, ::testing::Values(0, 1, 2, 3));

TEST_P(WholeModel, ATokenChangesNothingBeforeItself) {
  const Batch batch = some_batch();
  const std::int64_t T = batch.shape[1];
  const std::vector<float> before = rank_.logits(batch);
  for (const std::int64_t t : {std::int64_t{0}, std::int64_t{1}, std::int64_t{31}, std::int64_t{32}, T - 1}) {
    Batch changed = batch;  // in the second sequence
    std::int32_t& token = changed.tokens[static_cast<std::size_t>(T + t)];
    token = (token + 1) % static_cast<std::int32_t>(rank_.config().vocabulary);
    const std::vector<float> after = rank_.logits(changed);
    EXPECT_TRUE(same_bits(rows_of(after, batch, 0, T + t), rows_of(before, batch, 0, T + t))) << "token " << t;
    for (std::int64_t row = T + t; row < 2 * T; ++row) {
      EXPECT_FALSE(same_bits(rows_of(after, batch, row, 1), rows_of(before, batch, row, 1))) << "token " << t;
    }
  }
}

TEST_P(WholeModel, SequencesOfABatchDoNotInfluenceOneAnother) {
  const Batch batch = some_batch(3);
  const std::int64_t T = batch.shape[1];
  const std::vector<float> together = rank_.logits(batch);
  Batch changed = batch;
  std::rotate(changed.tokens.begin() + T, changed.tokens.begin() + T + 5, changed.tokens.begin() + 2 * T);
  const std::vector<float> after = rank_.logits(changed);
  EXPECT_TRUE(same_bits(rows_of(after, batch, 0, T), rows_of(together, batch, 0, T)));
  EXPECT_TRUE(same_bits(rows_of(after, batch, 2 * T, T), rows_of(together, batch, 2 * T, T)));

  for (std::int64_t sequence = 0; sequence < 3; ++sequence) {
    const auto begin = batch.tokens.begin() + sequence * T;
    const std::vector<std::int32_t> tokens(begin, begin + T);
    const std::vector<float> alone = rank_.logits({.shape = {1, T}, .tokens = tokens, .targets = tokens});
    const auto rows = rows_of(together, batch, sequence * T, T);
    EXPECT_LT(relative_error(alone, {rows.begin(), rows.end()}), 1e-6);
  }
}

TEST_P(WholeModel, GradientsOfMicroBatchesAddUp) {
  const Batch batch = some_batch(4);
  rank_.forward_backward(batch);
  const std::vector<float> whole = rank_.gradients();
  for (std::size_t half = 0; half < 2; ++half) {
    Batch part{.shape = {2, batch.shape[1]}, .tokens = {}, .targets = {}};
    const auto begin = static_cast<std::ptrdiff_t>(half) * part.shape.numel(), end = begin + part.shape.numel();
    part.tokens.assign(batch.tokens.begin() + begin, batch.tokens.begin() + end);
    part.targets.assign(batch.targets.begin() + begin, batch.targets.begin() + end);
    rank_.forward_backward(part, {.gradients = half == 0 ? Accumulate::overwrite : Accumulate::add});
  }
  std::vector<float> sum = rank_.gradients();
  for (float& g : sum) g *= 0.5f;  // means of halves
  EXPECT_LT(relative_error(sum, whole), 1e-5);
}

TEST_P(WholeModel, RecomputeGivesTheSameBits) {
  const Batch batch = some_batch(2, 70);
  const double kept = rank_.forward_backward(batch, {.recompute = Recompute::none});
  const std::vector<float> gradients = rank_.gradients();
  for (const Recompute recompute : {Recompute::selective, Recompute::block}) {
    EXPECT_EQ(rank_.forward_backward(batch, {.recompute = recompute}), kept);
    EXPECT_TRUE(same_bits(rank_.gradients(), gradients));
  }
}

TEST_P(WholeModel, TwoRunsGiveTheSameBits) {
  const Batch batch = some_batch();
  const double loss = rank_.forward_backward(batch);
  const std::vector<float> gradients = rank_.gradients();
  ModelRank again(small_config(GetParam()));
  EXPECT_EQ(again.forward_backward(batch), loss);
  EXPECT_TRUE(same_bits(again.gradients(), gradients));
  EXPECT_TRUE(same_bits(again.logits(batch), rank_.logits(batch)));
}

TEST_P(WholeModel, TheLossDoesNotDependOnItsChunks) {
  const Batch batch = some_batch();
  const double loss = rank_.forward_backward(batch);
  const std::vector<float> gradients = rank_.gradients();
  for (const std::int64_t chunk : {std::int64_t{1}, std::int64_t{7}, std::int64_t{1} << 40}) {
    EXPECT_NEAR(rank_.forward_backward(batch, {.loss_chunk = chunk}), loss, 1e-6 * loss) << chunk;
    EXPECT_LT(relative_error(rank_.gradients(), gradients), 1e-5) << chunk;
    EXPECT_NEAR(rank_.evaluate(batch, {.loss_chunk = chunk}), loss, 1e-6 * loss) << chunk;
  }
}

TEST_P(WholeModel, PlansAreExactForEveryCallAndShape) {
  // with_arena checks each call's real peak, in an arena of exactly the planned size, against the plan's.
  for (const auto& [sequences, length] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 1}, {3, 2}, {1, 33}, {2, 64}}) {
    const Batch batch = some_batch(sequences, length);
    for (const std::int64_t chunk : {1, 7, 1024}) {
      for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::block}) {
        const double loss = rank_.forward_backward(batch, {.recompute = recompute, .loss_chunk = chunk});
        EXPECT_NEAR(rank_.evaluate(batch, {.recompute = recompute, .loss_chunk = chunk}), loss, 1e-6 * loss);
      }
    }
    for (const float logit : rank_.logits(batch)) ASSERT_TRUE(std::isfinite(logit));
  }
  for (const float gradient : rank_.gradients()) ASSERT_TRUE(std::isfinite(gradient));
}

TEST_P(WholeModel, NothingIsWrittenBetweenParameters) {
  std::set<std::int64_t> used;
  for (const ParameterStore::Entry& entry : rank_.store().entries()) {
    for (std::int64_t i = entry.range.begin; i < entry.range.end(); ++i) used.insert(i);
  }
  const std::vector<float> values = rank_.values();
  rank_.forward_backward(some_batch(), {.recompute = Recompute::block});
  const std::vector<float> gradients = rank_.gradients();
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (used.contains(static_cast<std::int64_t>(i))) continue;
    ASSERT_EQ(gradients[i], 0.0f) << "padding element " << i;
  }
  EXPECT_TRUE(same_bits(rank_.values(), values));
}

TEST_P(WholeModel, PaddingTokensHaveNoGradientFromTheHead) {
  rank_.forward_backward(some_batch());
  const std::vector<float> table = rank_.gradient("backbone.embedding.weight");
  const auto first = static_cast<std::size_t>(rank_.config().vocabulary * rank_.config().d_model);
  for (std::size_t i = first; i < table.size(); ++i) ASSERT_EQ(table[i], 0.0f);
}

TEST_P(WholeModel, BlocksAreUsedAndDoneInOrderAndOnce) {
  const Batch batch = some_batch();
  for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::block}) {
    std::vector<int> used, done;
    std::vector<std::vector<float>> complete;
    float loss = 0;
    rank_.with_arena([&](Stream& stream, Arena& arena) {
      done.clear();
      complete.clear();
      used.clear();
      const LanguageModel::BlockHooks hooks{.before_use = [&](int block) { used.push_back(block); },
                                            .gradient_done =
                                                [&](int block) {
                                                  const FlatRange range = rank_.store().partition().block(block);
                                                  const float* from = rank_.store().gradients().as<float>() + range.begin;
                                                  done.push_back(block);
                                                  complete.emplace_back(from, from + range.size);
                                                }};
      rank_.model().forward_backward(stream, arena, batch.token_tensor(), batch.target_tensor(), 1.0f,
                                     {.recompute = recompute}, Tensor::of(&loss, {1}), hooks);
    });
    EXPECT_EQ(used, (std::vector<int>{4, 0, 1, 2, 3}));
    EXPECT_EQ(done, (std::vector<int>{3, 2, 1, 0, 4}));
    const std::vector<float> gradients = rank_.gradients();
    for (std::size_t i = 0; i < done.size(); ++i) {
      const FlatRange range = rank_.store().partition().block(done[i]);
      EXPECT_TRUE(same_bits(complete[i], {gradients.data() + range.begin, static_cast<std::size_t>(range.size)}))
          << "block " << done[i] << " changed after it was called complete";
    }
  }
}

/// The model as it starts: fc2 is zero.
ModelRank fresh(std::int64_t dense_depth, std::int64_t layers = 3) {
  const ModelConfig config = small_config(dense_depth, layers);
  return ModelRank(config, Grid::plan(1, 1), parameter_specs(config));
}

TEST(DenseDepth, ClosedGatesLeavePlainMamba) {
  const Batch batch = some_batch(2, 70);
  ModelRank mamba = fresh(0);
  const double loss = mamba.forward_backward(batch);
  const std::vector<float> logits = mamba.logits(batch);
  for (const std::int64_t depth : {1, 2, 3}) {
    ModelRank dense = fresh(depth);
    EXPECT_LT(relative_error(dense.logits(batch), logits), 1e-6) << "depth " << depth;
    EXPECT_NEAR(dense.forward_backward(batch), loss, 1e-6 * loss) << "depth " << depth;
    for (const ParameterStore::Entry& entry : mamba.store().entries()) {
      EXPECT_LT(relative_error(dense.gradient(entry.spec.name), mamba.gradient(entry.spec.name)), 1e-5) << entry.spec.name;
    }
    // The slope of silu at 0 is 1/2: fc2 learns from the first step, and fc1 once fc2 has left zero.
    for (const std::int64_t layer : {1, 2}) {
      const std::vector<float> fc2 = dense.gradient(mixer_prefix(layer) + "dense_gate.fc2.weight");
      EXPECT_TRUE(std::any_of(fc2.begin(), fc2.end(), [](float g) { return g != 0.0f; }));
      const std::vector<float> fc1 = dense.gradient(mixer_prefix(layer) + "dense_gate.fc1.weight");
      EXPECT_TRUE(std::all_of(fc1.begin(), fc1.end(), [](float g) { return g == 0.0f; }));
    }
  }
}

TEST(DenseDepth, OneLayerHasNothingToReadAndIsPlainMambaBitForBit) {
  const Batch batch = some_batch();
  ModelRank plain = fresh(0, 1), dense = fresh(1, 1);
  EXPECT_EQ(dense.forward_backward(batch), plain.forward_backward(batch));
  EXPECT_TRUE(same_bits(dense.gradients(), plain.gradients()));
  EXPECT_TRUE(same_bits(dense.logits(batch), plain.logits(batch)));
}

TEST(DenseDepth, OpenGatesReadEveryLayerBelow) {
  const Batch batch = some_batch();
  std::vector<std::vector<float>> logits;
  for (const std::int64_t depth : {0, 1, 2, 3}) logits.push_back(ModelRank(small_config(depth)).logits(batch));
  EXPECT_GT(relative_error(logits[1], logits[0]), 1e-2);
  EXPECT_GT(relative_error(logits[2], logits[1]), 1e-2);
  EXPECT_TRUE(same_bits(logits[3], logits[2])) << "the third layer has two below it";
}

TEST(DenseDepth, AFreshModelPredictsAlmostUniformly) {
  ModelRank rank = fresh(2);
  EXPECT_NEAR(rank.evaluate(some_batch()), std::log(90.0), 0.1);
}

}  // namespace
}  // namespace dm
