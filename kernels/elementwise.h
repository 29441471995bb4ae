// Small ops on flat data: fill, add, SiLU of the dense gate, sum of squares.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

/// x = value. x f32.
using FillOp = void(Stream& stream, const Tensor& x, float value);
FillOp fill;

/// y += x, element by element. x, y f32 of one size; must not overlap.
using AddToOp = void(Stream& stream, const Tensor& x, const Tensor& y);
AddToOp add_to;

/// y = x, rounded to nearest or widened: one of x, y f32, the other bf16, of one size; no overlap.
using ConvertOp = void(Stream& stream, const Tensor& x, const Tensor& y);
ConvertOp convert;

/// y = silu(x) = x · sigmoid(x). x, y of one size; y may alias x.
using SiluForwardOp = void(Stream& stream, const Tensor& x, const Tensor& y);
SiluForwardOp silu_forward;

/// dx = dy ⊙ silu'(x). x, dy, dx of one size; dx may alias dy.
using SiluBackwardOp = void(Stream& stream, const Tensor& x, const Tensor& dy, const Tensor& dx);
SiluBackwardOp silu_backward;

/// out[0] += Σ x². x f32 of any size; out [1] f32. Summed in double in a fixed order and rounded once; a NaN or Inf in x
/// makes out NaN or Inf.
using SumOfSquaresOp = void(Stream& stream, const Tensor& x, const Tensor& out);
SumOfSquaresOp sum_of_squares;

namespace cpu {
FillOp fill;
AddToOp add_to;
ConvertOp convert;
SiluForwardOp silu_forward;
SiluBackwardOp silu_backward;
SumOfSquaresOp sum_of_squares;
}  // namespace cpu
namespace cuda {
FillOp fill;
AddToOp add_to;
ConvertOp convert;
SiluForwardOp silu_forward;
SiluBackwardOp silu_backward;
SumOfSquaresOp sum_of_squares;
}  // namespace cuda

}  // namespace dm
