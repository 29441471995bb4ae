// The checks of the causal convolution and of its backward.
#include "kernels/causal_conv.h"

#include "kernels/check.h"
#include "kernels/dispatch.h"

namespace dm {
namespace {

/// Checks what both directions share: whole, which is [B, T, D], x [B·T, D], weight [D, W], bias [D], W from 2 to 8.
void check_operands(const ArgumentCheck& check, std::string_view name, const Tensor& whole, const Matrix& x,
                    const Tensor& weight, const Tensor& bias) {
  if (whole.shape().rank() != 3) check.that(false, std::string(name) + " must be [batch, tokens, channels]");
  check.compute(name, whole, whole.shape());
  check.matrix("x", x, whole.rows(), whole.size(2), whole.dtype());
  check.that(weight.shape().rank() == 2 && weight.size(1) >= 2 && weight.size(1) <= 8,
             "weight must be [channels, taps] with 2 to 8 taps");
  check.tensor("weight", weight, Shape{whole.size(2), weight.size(1)}, DType::f32);
  check.tensor("bias", bias, Shape{whole.size(2)}, DType::f32);
}

}  // namespace

void causal_conv_silu_forward(Stream& stream, const Matrix& x, const Tensor& weight, const Tensor& bias,
                              const Tensor& history, const Tensor& out) {
  const ArgumentCheck check(stream, "causal_conv_silu_forward");
  check_operands(check, "out", out, x, weight, bias);
  if (history) check.tensor("history", history, Shape{out.size(0), weight.size(1) - 1, out.size(2)}, DType::f32);
  dispatch(stream, "causal_conv_silu_forward", DM_TWINS(causal_conv_silu_forward), x, weight, bias, history, out);
}

void causal_conv_silu_backward(Stream& stream, const Tensor& dout, const OutputProjection& projection, const Matrix& x,
                               const Tensor& weight, const Tensor& bias, const Matrix& dx, const Tensor& dweight,
                               const Tensor& dbias) {
  const ArgumentCheck check(stream, "causal_conv_silu_backward");
  check_operands(check, "dout", dout, x, weight, bias);
  if (projection.dy) {
    const std::int64_t K = projection.dy.size(-1);
    check.rows("the projection's dy", projection.dy, dout.rows(), K, dout.dtype());
    check.tensor("the projection's weight", projection.weight, Shape{K, dout.size(2)}, dout.dtype());
  }
  check.matrix("dx", dx, dout.rows(), dout.size(2), dout.dtype());
  check.tensor("dweight", dweight, weight.shape(), DType::f32);
  check.tensor("dbias", dbias, bias.shape(), DType::f32);
  dispatch(stream, "causal_conv_silu_backward", DM_TWINS(causal_conv_silu_backward), dout, projection, x, weight, bias, dx,
           dweight, dbias);
}

}  // namespace dm
