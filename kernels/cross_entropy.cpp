// The checks of the two passes of vocabulary-sharded cross-entropy.
#include "kernels/cross_entropy.h"

#include "kernels/check.h"
#include "kernels/dispatch.h"

namespace dm {
namespace {

/// Checks logits [rows, V_local], targets [rows] and the shard.
void check_operands(const ArgumentCheck& check, const Tensor& logits, const Tensor& targets, VocabularyShard shard) {
  check.that(logits.shape().rank() == 2, "logits must be [rows, vocabulary columns]");
  check.compute("logits", logits, logits.shape());
  check.tensor("targets", targets, Shape{logits.size(0)}, DType::i32);
  check.that(shard.first >= 0 && shard.valid >= 0 && shard.valid <= logits.size(1),
             "the shard has more valid columns than the logits have columns");
}

}  // namespace

void cross_entropy_stats(Stream& stream, const Tensor& logits, const Tensor& targets, VocabularyShard shard,
                         const Tensor& stats) {
  const ArgumentCheck check(stream, "cross_entropy_stats");
  check_operands(check, logits, targets, shard);
  check.tensor("stats", stats, Shape{logits.size(0), 3}, DType::f32);
  dispatch(stream, "cross_entropy_stats", DM_TWINS(cross_entropy_stats), logits, targets, shard, stats);
}

void cross_entropy_finish(Stream& stream, const Tensor& logits, const Tensor& targets, VocabularyShard shard,
                          const Tensor& all_stats, float scale, const Tensor& losses) {
  const ArgumentCheck check(stream, "cross_entropy_finish");
  check_operands(check, logits, targets, shard);
  check.that(all_stats.shape().rank() == 3 && all_stats.size(0) >= 1, "all_stats must be [shards, rows, 3]");
  check.tensor("all_stats", all_stats, Shape{all_stats.size(0), logits.size(0), 3}, DType::f32);
  check.tensor("losses", losses, Shape{logits.size(0)}, DType::f32);
  dispatch(stream, "cross_entropy_finish", DM_TWINS(cross_entropy_finish), logits, targets, shard, all_stats, scale, losses);
}

}  // namespace dm
