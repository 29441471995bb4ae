// The chunked head: logits of a few tokens, their loss and gradient, and on to the next.
#include "model/vocabulary.h"

#include <algorithm>

#include "kernels/embedding.h"
#include "kernels/sum.h"
#include "model/linear.h"

namespace dm {

VocabularyParallel::VocabularyParallel(const ModelConfig& config, const ParameterStore& store, Communicator& tensor)
    : table_(store.parameter("backbone.embedding.weight")), tensor_(&tensor) {
  const std::int64_t rows = table_.value.size(0);
  shard_.first = tensor.rank() * rows;
  shard_.valid = std::clamp<std::int64_t>(config.vocabulary - shard_.first, 0, rows);
}

void VocabularyParallel::embed(Stream& stream, const Tensor& tokens, const Tensor& out) const {
  embedding_forward(stream, tokens, table_.value, shard_.first, out);
}

void VocabularyParallel::embed_backward(Stream& stream, const Tensor& tokens, const Tensor& dout) const {
  embedding_backward(stream, tokens, dout, shard_.first, table_.gradient);
}

void VocabularyParallel::logits(Stream& stream, const Tensor& x, const Tensor& logits) const {
  linear_forward(stream, x, table_.value, logits);
}

void VocabularyParallel::loss(Stream& stream, Arena& arena, const Tensor& x, const Tensor& targets, std::int64_t chunk,
                              float scale, const Tensor& dx, const Tensor& loss_sum, Accumulate gradient) const {
  const Arena::Scope scope(arena);
  const std::int64_t rows = x.rows(), C = x.size(-1), columns = table_.value.size(0), ranks = tensor_->size();
  chunk = std::min(chunk, rows);
  const auto scratch = [&](Shape shape, DType dtype) { return arena.allocate(shape, dtype, "logits of one chunk"); };
  const Tensor logits_space = scratch({chunk, columns}, x.dtype());
  const Tensor stats_space = scratch({ranks * chunk * 3}, DType::f32), losses_space = scratch({chunk}, DType::f32);
  const Tensor x_rows = x.reshaped({rows, C}), target_rows = targets.flat();

  for (std::int64_t begin = 0; begin < rows; begin += chunk) {
    const std::int64_t count = std::min(chunk, rows - begin);
    const Tensor x_chunk = x_rows.slice(begin, count), target_chunk = target_rows.slice(begin, count);
    const Tensor logits_chunk = logits_space.slice(0, count), losses = losses_space.slice(0, count);
    const Tensor all_stats = stats_space.flat(0, ranks * count * 3).reshaped({ranks, count, 3});
    const Tensor stats = all_stats.slice(tensor_->rank(), 1).reshaped({count, 3});
    logits(stream, x_chunk, logits_chunk);
    cross_entropy_stats(stream, logits_chunk, target_chunk, shard_, stats);
    tensor_->all_gather(stream, stats, all_stats);
    cross_entropy_finish(stream, logits_chunk, target_chunk, shard_, all_stats, dx ? scale : 0.0f, losses);
    add_sum(stream, losses, loss_sum);
    if (!dx) continue;
    linear_backward_input(stream, logits_chunk, table_.value, dx.reshaped({rows, C}).slice(begin, count),
                          Accumulate::overwrite);
    linear_backward_weight(stream, logits_chunk, x_chunk, table_.gradient, begin == 0 ? gradient : Accumulate::add);
  }
}

}  // namespace dm
