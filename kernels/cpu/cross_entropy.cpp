// Cross-entropy on the CPU: two passes over a row for its stats, one more for its gradient.
#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/loops.h"
#include "kernels/cpu/vector_math.h"

namespace dm::cpu {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct RowPeak {
  float largest;       ///< NaN among the values is passed over.
  float not_a_number;  ///< 0, or NaN when a value is NaN or infinite.
};

RowPeak peak_of(const float* x, std::int64_t n) {
  constexpr int kParts = 32;
  float largest[kParts], poison[kParts] = {};
  std::fill_n(largest, kParts, kMinusInfinity);
  const auto take = [&](int lane, float value) {
    largest[lane] = value > largest[lane] ? value : largest[lane];
    poison[lane] += value * 0.0f;
  };
  std::int64_t i = 0;
  for (; i + kParts <= n; i += kParts) {
    for (int lane = 0; lane < kParts; ++lane) take(lane, x[i + lane]);
  }
  for (int lane = 0; i + lane < n; ++lane) take(lane, x[i + lane]);
  RowPeak row{kMinusInfinity, 0.0f};
  for (int lane = 0; lane < kParts; ++lane) {
    row.largest = std::max(row.largest, largest[lane]);
    row.not_a_number += poison[lane];
  }
  return row;
}

/// Column of the target in this shard, or −1.
std::int64_t local_column(const Tensor& targets, std::int64_t row, VocabularyShard shard) {
  const std::int64_t column = targets.as<std::int32_t>()[row] - shard.first;
  return column >= 0 && column < shard.valid ? column : -1;
}

struct Softmax {
  float largest;  ///< Over all shards.
  double sum;     ///< Σ exp(x − largest)
  double target;  ///< Logit of the target.
};

/// The stats of `row` of all shards, added in shard order. 0 · exp(−inf − m) is 0: a shard without valid columns adds
/// nothing.
Softmax combined(const Tensor& all_stats, std::int64_t row) {
  const std::int64_t shards = all_stats.size(0), rows = all_stats.size(1);
  const auto stats = [&](std::int64_t shard) { return all_stats.as<float>() + (shard * rows + row) * 3; };
  Softmax result{kMinusInfinity, 0, 0};
  for (std::int64_t shard = 0; shard < shards; ++shard) result.largest = std::max(result.largest, stats(shard)[0]);
  for (std::int64_t shard = 0; shard < shards; ++shard) {
    const double shift = static_cast<double>(stats(shard)[0]) - static_cast<double>(result.largest);
    result.sum += static_cast<double>(stats(shard)[1]) * std::exp(shift);
    result.target += static_cast<double>(stats(shard)[2]);
  }
  return result;
}

}  // namespace

void cross_entropy_stats(Stream&, const Tensor& logits, const Tensor& targets, VocabularyShard shard, const Tensor& stats) {
  const std::int64_t columns = logits.size(1);
  for (std::int64_t row = 0; row < logits.size(0); ++row) {
    const float* x = logits.as<float>() + row * columns;
    const RowPeak peak = peak_of(x, shard.valid);
    const float m = peak.largest;
    const std::int64_t target = local_column(targets, row, shard);
    float* out = stats.as<float>() + row * 3;
    out[0] = m;
    out[1] =
        lane_sum<float, 32>(shard.valid, [x, m](std::int64_t i) { return exp_nonpositive(x[i] - m); }) + peak.not_a_number;
    out[2] = target < 0 ? 0.0f : x[target];
  }
}

void cross_entropy_finish(Stream&, const Tensor& logits, const Tensor& targets, VocabularyShard shard,
                          const Tensor& all_stats, float scale, const Tensor& losses) {
  const std::int64_t columns = logits.size(1);
  for (std::int64_t row = 0; row < logits.size(0); ++row) {
    const Softmax softmax = combined(all_stats, row);
    losses.as<float>()[row] =
        static_cast<float>(std::log(softmax.sum) + static_cast<double>(softmax.largest) - softmax.target);
    if (scale == 0) continue;
    float* x = logits.as<float>() + row * columns;
    const float m = softmax.largest;
    const auto factor = static_cast<float>(static_cast<double>(scale) / softmax.sum);
    for (std::int64_t i = 0; i < shard.valid; ++i) x[i] = factor * exp_nonpositive(x[i] - m);
    std::fill(x + shard.valid, x + columns, 0.0f);
    const std::int64_t target = local_column(targets, row, shard);
    if (target >= 0) x[target] -= scale;
  }
}

}  // namespace dm::cpu
