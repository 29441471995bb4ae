// Lookup in a vocabulary-sharded embedding table, and its gradient.
#pragma once

#include <cstdint>

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

/// out[i] = table[tokens[i] − first_row] where that row is on this rank, zero elsewhere: the sum over the tensor group is
/// the embedding. tokens [..] i32; table [V_local, C] compute dtype; out [.., C] f32, overwritten.
using EmbeddingForwardOp = void(Stream& stream, const Tensor& tokens, const Tensor& table, std::int64_t first_row,
                                const Tensor& out);
EmbeddingForwardOp embedding_forward;

/// dtable[tokens[i] − first_row] += dout[i] for the tokens of this rank, added in an order that the tokens alone decide:
/// same bits every run. tokens [..] i32; dout [.., C] f32; dtable [V_local, C] f32, accumulated.
using EmbeddingBackwardOp = void(Stream& stream, const Tensor& tokens, const Tensor& dout, std::int64_t first_row,
                                 const Tensor& dtable);
EmbeddingBackwardOp embedding_backward;

namespace cpu {
EmbeddingForwardOp embedding_forward;
EmbeddingBackwardOp embedding_backward;
}  // namespace cpu
namespace cuda {
EmbeddingForwardOp embedding_forward;
EmbeddingBackwardOp embedding_backward;
}  // namespace cuda

}  // namespace dm
