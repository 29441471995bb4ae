// The checks of the causal convolution and of its backward.
#include "kernels/causal_conv.h"

#include "kernels/check.h"
#include "kernels/dispatch.h"

namespace dm {
namespace {

/// Checks what both directions share: x [B, T, D], weight [D, W], bias [D], W from 2 to 8.
void check_operands(const ArgumentCheck& check, const Tensor& x, const Tensor& weight, const Tensor& bias) {
  check.that(x.shape().rank() == 3, "x must be [batch, tokens, channels]");
  check.compute("x", x, x.shape());
  check.that(weight.shape().rank() == 2 && weight.size(1) >= 2 && weight.size(1) <= 8,
             "weight must be [channels, taps] with 2 to 8 taps");
  check.tensor("weight", weight, Shape{x.size(2), weight.size(1)}, DType::f32);
  check.tensor("bias", bias, Shape{x.size(2)}, DType::f32);
}

}  // namespace

void causal_conv_silu_forward(Stream& stream, const Tensor& x, const Tensor& weight, const Tensor& bias,
                              const Tensor& history, const Tensor& out) {
  const ArgumentCheck check(stream, "causal_conv_silu_forward");
  check_operands(check, x, weight, bias);
  if (history) check.tensor("history", history, Shape{x.size(0), weight.size(1) - 1, x.size(2)}, DType::f32);
  check.compute("out", out, x.shape());
  dispatch(stream, "causal_conv_silu_forward", DM_TWINS(causal_conv_silu_forward), x, weight, bias, history, out);
}

void causal_conv_silu_backward(Stream& stream, const Tensor& dout, const Tensor& x, const Tensor& weight, const Tensor& bias,
                               const Tensor& dx, const Tensor& dweight, const Tensor& dbias) {
  const ArgumentCheck check(stream, "causal_conv_silu_backward");
  check_operands(check, x, weight, bias);
  check.compute("dout", dout, x.shape());
  check.compute("dx", dx, x.shape());
  check.tensor("dweight", dweight, weight.shape(), DType::f32);
  check.tensor("dbias", dbias, bias.shape(), DType::f32);
  dispatch(stream, "causal_conv_silu_backward", DM_TWINS(causal_conv_silu_backward), dout, x, weight, bias, dx, dweight,
           dbias);
}

}  // namespace dm
