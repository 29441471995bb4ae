// A linear layer without bias, y = x·Wᵀ, and its two gradients, as matrix products.
#pragma once

#include "kernels/matmul.h"
#include "model/parameter_store.h"

namespace dm {

/// Weights are [outputs, inputs] as in PyTorch. Over a tensor group a weight cut by rows makes this rank's columns of y from
/// a whole x (and a partial dx); one cut by columns makes a partial y from this rank's columns of x. The sums over the group
/// that complete partial results are the caller's, who knows which of them can travel together.
inline void linear_forward(Stream& stream, const Matrix& x, const Matrix& weight, const Matrix& y) {
  matmul(stream, x, Transpose::no, weight, Transpose::yes, y, Accumulate::overwrite);
}

/// dx = dy·W, or dx += dy·W.
inline void linear_backward_input(Stream& stream, const Matrix& dy, const Matrix& weight, const Matrix& dx,
                                  Accumulate accumulate) {
  matmul(stream, dy, Transpose::no, weight, Transpose::no, dx, accumulate);
}

/// dW = dyᵀ·x, or dW += dyᵀ·x.
inline void linear_backward_weight(Stream& stream, const Matrix& dy, const Matrix& x, const Matrix& dweight,
                                   Accumulate accumulate) {
  matmul(stream, dy, Transpose::yes, x, Transpose::no, dweight, accumulate);
}

}  // namespace dm
