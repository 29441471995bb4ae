// Both ends of the model over one vocabulary-sharded table: the embedding, and the tied head with its loss.
#pragma once

#include <cstdint>

#include "kernels/cross_entropy.h"
#include "kernels/matmul.h"
#include "model/config.h"
#include "model/parameter_store.h"
#include "parallel/communicator.h"
#include "runtime/arena.h"
#include "runtime/stream.h"

namespace dm {

/// Tokens whose logits exist at once, unless somebody asks for another number: on an H100 the fastest from 1024 to 8192.
inline constexpr std::int64_t kLossChunk = 4096;

/// The embedding table [V_padded, C] is cut by rows over the tensor group. Logits exist for one chunk of tokens at a time
/// and are never gathered: the loss takes three scalars a token from each rank. Padding rows take no part in the softmax.
class VocabularyParallel {
 public:
  VocabularyParallel(const ModelConfig& config, const ParameterStore& store, Communicator& tensor);

  /// out [B, T, C] f32 = this rank's rows of the table, zero for tokens of others': its part of a sum over the group. tokens
  /// [B, T] i32 on every rank.
  void embed(Stream& stream, const Tensor& tokens, const Tensor& out) const;
  /// Adds dout [B, T, C] f32 to the rows' gradients.
  void embed_backward(Stream& stream, const Tensor& tokens, const Tensor& dout) const;

  /// This rank's columns of the logits: logits [.., V_padded / ranks] f32 or compute dtype = x [.., C] · tableᵀ.
  void logits(Stream& stream, const Tensor& x, const Tensor& logits) const;

  /// loss_sum[0] += Σ over all tokens of the cross-entropy of targets [B, T] i32 under softmax(x · tableᵀ), the same on
  /// every rank. When dx is present: dx [B, T, C] = scale · cotangent of x, this rank's part of a sum over the group, and
  /// the table's gradient is overwritten or added to, as `gradient` says. At most `chunk` tokens have logits at once.
  void loss(Stream& stream, Arena& arena, const Tensor& x, const Tensor& targets, std::int64_t chunk, float scale,
            const Tensor& dx, const Tensor& loss_sum, Accumulate gradient) const;

  const VocabularyShard& shard() const { return shard_; }
  /// Rows of the table on this rank: columns of its logits.
  std::int64_t rows() const { return table_.value.size(0); }

 private:
  Parameter table_;
  VocabularyShard shard_;
  Communicator* tensor_;
};

}  // namespace dm
