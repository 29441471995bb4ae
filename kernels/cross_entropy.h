// Cross-entropy of next-token prediction over vocabulary-sharded logits, in two local passes around one small exchange.
#pragma once

#include <cstdint>

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

/// Which columns of the vocabulary a rank's logits are. Padding columns (beyond `valid` of them) take no part.
struct VocabularyShard {
  std::int64_t first = 0;  ///< Global token id of column 0.
  std::int64_t valid = 0;  ///< Columns that are real tokens; may be zero on the last ranks.
};

/// Per row over the shard's valid columns: stats = (max m, Σ exp(x − m), logit of the target or 0 when it is elsewhere).
/// With no valid column m = −inf and the sum is 0. logits [rows, V_local]; targets [rows] i32; stats [rows, 3] f32.
using CrossEntropyStatsOp = void(Stream& stream, const Tensor& logits, const Tensor& targets, VocabularyShard shard,
                                 const Tensor& stats);
CrossEntropyStatsOp cross_entropy_stats;

/// Combines the stats of all p shards, in shard order: losses[i] = log Σ exp(x) − x[target]; then, when `scale` is not zero,
/// overwrites logits with the gradient scale · (softmax(x) − onehot(target)) (zero in padding columns).
/// all_stats [p, rows, 3] f32; losses [rows] f32, overwritten. A NaN or Inf among the logits reaches losses.
using CrossEntropyFinishOp = void(Stream& stream, const Tensor& logits, const Tensor& targets, VocabularyShard shard,
                                  const Tensor& all_stats, float scale, const Tensor& losses);
CrossEntropyFinishOp cross_entropy_finish;

namespace cpu {
CrossEntropyStatsOp cross_entropy_stats;
CrossEntropyFinishOp cross_entropy_finish;
}  // namespace cpu
namespace cuda {
CrossEntropyStatsOp cross_entropy_stats;
CrossEntropyFinishOp cross_entropy_finish;
}  // namespace cuda

}  // namespace dm
