// Causal depthwise convolution along time followed by SiLU, and its backward.
#pragma once

#include "kernels/matrix.h"
#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

/// p_t = bias + Σ_{w<W} weight[:, w] ⊙ x_{t−W+1+w};  out_t = silu(p_t) = p_t · sigmoid(p_t).
///
/// x [B·T, D] with any row stride, out [B, T, D] compute dtype; weight [D, W], bias [D] f32. Before the first token x is
/// zero, or, when `history` [B, W−1, D] f32 is present, its rows (oldest first); then history is overwritten with the last
/// W−1 inputs, so that a sequence may be fed in pieces, down to one token at a time. out must not alias x. W from 2 to 8.
using CausalConvForwardOp = void(Stream& stream, const Matrix& x, const Tensor& weight, const Tensor& bias,
                                 const Tensor& history, const Tensor& out);
CausalConvForwardOp causal_conv_silu_forward;

/// A linear layer y = out · weightᵀ that reads the convolution's output, as backward meets it.
struct OutputProjection {
  Tensor dy;      ///< [B, T, K] cotangent of y; absent: no such layer, and no weight either.
  Tensor weight;  ///< [K, D]
};

/// p̄ = (dout + dy · weight of the projection) ⊙ silu'(p), p recomputed from x;  dx_t = Σ_w weight[:, w] ⊙ p̄_{t+W−1−w};
/// dweight[:, w] += Σ p̄_t ⊙ x_{t−W+1+w};  dbias += Σ p̄_t. For sequences that started without history.
///
/// dout [B, T, D], of undefined contents afterwards where there is a projection; x, dx [B·T, D] with any row strides (dx
/// overwritten, must not alias dout or x); the projection's tensors of the compute dtype; dweight [D, W], dbias [D] f32,
/// accumulated. The product may be rounded to the compute dtype before it is used. Sums in a fixed order: same bits every
/// run.
using CausalConvBackwardOp = void(Stream& stream, const Tensor& dout, const OutputProjection& projection, const Matrix& x,
                                  const Tensor& weight, const Tensor& bias, const Matrix& dx, const Tensor& dweight,
                                  const Tensor& dbias);
CausalConvBackwardOp causal_conv_silu_backward;

namespace cpu {
CausalConvForwardOp causal_conv_silu_forward;
CausalConvBackwardOp causal_conv_silu_backward;
}  // namespace cpu
namespace cuda {
CausalConvForwardOp causal_conv_silu_forward;
CausalConvBackwardOp causal_conv_silu_backward;
}  // namespace cuda

}  // namespace dm
