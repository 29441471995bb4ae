// Cross-entropy over one shard and over many: losses, gradients, padding, empty shards, NaN and Inf.
#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/kernels/oracle.h"

namespace dm {
namespace {

using oracle::error_of;
using oracle::Guarded;
using oracle::Overwritten;
using oracle::Random;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Per row: log Σ exp(x) − x[target] over the vocabulary.
std::vector<double> exact_losses(const std::vector<double>& logits, const std::vector<std::int32_t>& targets) {
  const std::size_t vocabulary = logits.size() / targets.size();
  std::vector<double> losses;
  for (std::size_t row = 0; row < targets.size(); ++row) {
    const double* x = logits.data() + row * vocabulary;
    const double m = *std::max_element(x, x + vocabulary);
    double sum = 0;
    for (std::size_t i = 0; i < vocabulary; ++i) sum += std::exp(x[i] - m);
    losses.push_back(std::log(sum) + m - x[targets[row]]);
  }
  return losses;
}

/// Logits [rows, vocabulary] cut into `shards` of equal width with NaN in the padding behind the vocabulary, and
/// what both passes made of them.
struct Sharded {
  std::int64_t rows, vocabulary, width;
  std::vector<std::unique_ptr<Overwritten>> logits, losses;
  std::vector<VocabularyShard> places;
  Guarded<std::int32_t> targets;
  Overwritten stats;

  Sharded(const Guarded<float>& whole, std::int64_t rows, const std::vector<std::int32_t>& all_targets, std::int64_t shards,
          std::int64_t width)
      : rows(rows),
        vocabulary(static_cast<std::int64_t>(whole.values().size()) / rows),
        width(width),
        targets({rows}, 0),
        stats({shards, rows, 3}) {
    std::copy(all_targets.begin(), all_targets.end(), targets.values().begin());
    for (std::int64_t shard = 0; shard < shards; ++shard) {
      const std::int64_t first = shard * width;
      places.push_back({first, std::clamp<std::int64_t>(vocabulary - first, 0, width)});
      logits.push_back(std::make_unique<Overwritten>(Shape{rows, width}));
      losses.push_back(std::make_unique<Overwritten>(Shape{rows}));
      for (std::int64_t i = 0; i < rows; ++i) {
        for (std::int64_t c = 0; c < places.back().valid; ++c)
          (*logits.back())[i * width + c] = whole[i * vocabulary + first + c];
      }
    }
  }

  void run(Stream& stream, float scale) {
    for (std::size_t shard = 0; shard < logits.size(); ++shard) {
      cross_entropy_stats(stream, logits[shard]->tensor(), targets.tensor(), places[shard],
                          stats.tensor().slice(static_cast<std::int64_t>(shard), 1).reshaped({rows, 3}));
    }
    for (std::size_t shard = 0; shard < logits.size(); ++shard) {
      cross_entropy_finish(stream, logits[shard]->tensor(), targets.tensor(), places[shard], stats.tensor(), scale,
                           losses[shard]->tensor());
    }
  }

  /// The valid columns of all shards side by side; padding must be zero.
  std::vector<float> joined() const {
    std::vector<float> whole;
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::size_t shard = 0; shard < logits.size(); ++shard) {
        for (std::int64_t c = 0; c < width; ++c) {
          const float value = (*logits[shard])[i * width + c];
          if (c < places[shard].valid) {
            whole.push_back(value);
          } else {
            EXPECT_EQ(value, 0.0f) << "padding column " << c << " of shard " << shard;
          }
        }
      }
    }
    return whole;
  }
};

std::vector<std::int32_t> spread_targets(std::int64_t rows, std::int64_t vocabulary) {
  std::vector<std::int32_t> targets;
  for (std::int64_t i = 0; i < rows; ++i)
    targets.push_back(static_cast<std::int32_t>((i * 7 + vocabulary - 1) % vocabulary));
  return targets;
}

class CrossEntropy : public ::testing::Test {
 protected:
  Stream stream{Device::cpu()};
};

TEST_F(CrossEntropy, LossesAndGradientsOverShardsAreThoseOfTheWhole) {
  constexpr std::int64_t kRows = 5;
  constexpr float kScale = 0.125f;
  for (const std::int64_t vocabulary : {1, 5, 16, 37, 300}) {
    Random whole("logits", {kRows, vocabulary}, 5.0f);
    const auto targets = spread_targets(kRows, vocabulary);
    std::vector<double> x = whole.as_double();
    const std::vector<double> expected = exact_losses(x, targets);
    const auto loss = [&] {
      double sum = 0;
      for (const double value : exact_losses(x, targets)) sum += static_cast<double>(kScale) * value;
      return sum;
    };
    const std::vector<double> gradient = oracle::finite_differences(x, loss);
    // One shard; two with padding in the last; five of which the last ones have no valid column at all.
    for (const auto& [shards, width] :
         {std::pair<std::int64_t, std::int64_t>{1, vocabulary + 3}, {2, (vocabulary + 2) / 2}, {5, (vocabulary + 2) / 3}}) {
      Sharded sharded(whole, kRows, targets, shards, width), again(whole, kRows, targets, shards, width);
      sharded.run(stream, kScale);
      again.run(stream, kScale);
      for (std::size_t shard = 0; shard < sharded.losses.size(); ++shard) {
        EXPECT_CLOSE(*sharded.losses[shard], expected, 1e-6) << vocabulary << " in " << shards;
        EXPECT_TRUE(oracle::same_bits(sharded.losses[shard]->values(), again.losses[0]->values()));
      }
      const std::vector<float> joined = sharded.joined();
      EXPECT_LT(oracle::relative_error<float>(joined, gradient), vocabulary == 1 ? 1e-7 : 2e-6) << vocabulary;
      EXPECT_TRUE(oracle::same_bits(joined, again.joined()));
    }
  }
}

TEST_F(CrossEntropy, AShardWithoutValidColumnsHasEmptyStats) {
  Overwritten logits({2, 4}), stats({2, 3});
  Guarded<std::int32_t> targets({2}, 3);
  cross_entropy_stats(stream, logits.tensor(), targets.tensor(), {8, 0}, stats.tensor());
  for (std::int64_t row = 0; row < 2; ++row) {
    EXPECT_EQ(stats[row * 3], -kInfinity);
    EXPECT_EQ(stats[row * 3 + 1], 0.0f);
    EXPECT_EQ(stats[row * 3 + 2], 0.0f);
  }
}

TEST_F(CrossEntropy, AZeroScaleLeavesTheLogits) {
  Random whole("logits", {3, 37});
  Sharded sharded(whole, 3, spread_targets(3, 37), 1, 37);
  sharded.run(stream, 0.0f);
  EXPECT_TRUE(oracle::same_bits(sharded.logits[0]->values(), whole.values()));
  EXPECT_CLOSE(*sharded.losses[0], exact_losses(whole.as_double(), spread_targets(3, 37)), 1e-6);
}

TEST_F(CrossEntropy, LargeLogitsDoNotOverflow) {
  for (const float offset : {3e4f, -3e4f}) {
    Guarded<float> whole({2, 20}, offset);
    whole[7] = offset + 64;
    Sharded sharded(whole, 2, {7, 7}, 2, 12);
    sharded.run(stream, 1.0f);
    EXPECT_EQ((*sharded.losses[0])[0], 0.0f);
    EXPECT_FLOAT_EQ((*sharded.losses[0])[1], std::log(20.0f));
    for (const float value : sharded.joined()) EXPECT_TRUE(std::isfinite(value));
  }
}

TEST_F(CrossEntropy, ANonFiniteLogitMakesItsLossNonFiniteAndNoOther) {
  for (const float bad : {kNaN, kInfinity, -kInfinity}) {
    for (const std::int64_t column : {0, 20, 36}) {
      Random whole("logits", {3, 37});
      whole[37 + column] = bad;
      Sharded sharded(whole, 3, {1, 2, 3}, 2, 19);
      sharded.run(stream, 1.0f);
      for (const auto& losses : sharded.losses) {
        EXPECT_TRUE(std::isfinite((*losses)[0]));
        EXPECT_FALSE(std::isfinite((*losses)[1])) << bad << " in column " << column;
        EXPECT_TRUE(std::isfinite((*losses)[2]));
      }
    }
  }
}

TEST_F(CrossEntropy, NamesTheWrongTensor) {
  Random logits("logits", {3, 8}), stats("stats", {3, 3}), losses("losses", {3});
  Guarded<std::int32_t> targets({3}, 0), short_targets({2}, 0);
  EXPECT_EQ(error_of([&] {
              cross_entropy_stats(stream, logits.tensor(), short_targets.tensor(), {0, 8}, stats.tensor());
            }),
            "cross_entropy_stats: targets is int32 [2], expected int32 [3]");
  EXPECT_EQ(error_of([&] {
              cross_entropy_stats(stream, logits.tensor(), targets.tensor(), {0, 9}, stats.tensor());
            }),
            "cross_entropy_stats: the shard has more valid columns than the logits have columns");
  EXPECT_EQ(error_of([&] {
              cross_entropy_stats(stream, logits.tensor(), targets.tensor(), {0, 8}, losses.tensor());
            }),
            "cross_entropy_stats: stats is float32 [3], expected float32 [3, 3]");
  EXPECT_EQ(error_of([&] {
              cross_entropy_finish(stream, logits.tensor(), targets.tensor(), {0, 8}, stats.tensor(), 1, losses.tensor());
            }),
            "cross_entropy_finish: all_stats must be [shards, rows, 3]");
}

}  // namespace
}  // namespace dm
