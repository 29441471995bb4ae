// The checks of the small ops on flat data.
#include "kernels/elementwise.h"

#include "kernels/check.h"
#include "kernels/dispatch.h"

namespace dm {

void fill(Stream& stream, const Tensor& x, float value) {
  const ArgumentCheck check(stream, "fill");
  check.elements("x", x, x.numel(), DType::f32);
  dispatch(stream, "fill", DM_TWINS(fill), x, value);
}

void add_to(Stream& stream, const Tensor& x, const Tensor& y) {
  const ArgumentCheck check(stream, "add_to");
  check.elements("y", y, y.numel(), DType::f32);
  check.elements("x", x, y.numel(), DType::f32);
  dispatch(stream, "add_to", DM_TWINS(add_to), x, y);
}

void convert(Stream& stream, const Tensor& x, const Tensor& y) {
  const ArgumentCheck check(stream, "convert");
  const bool narrows = x.dtype() == DType::f32;
  check.elements("x", x, x.numel(), narrows ? DType::f32 : DType::bf16);
  check.elements("y", y, x.numel(), narrows ? DType::bf16 : DType::f32);
  dispatch(stream, "convert", DM_TWINS(convert), x, y);
}

void silu_forward(Stream& stream, const Tensor& x, const Tensor& y) {
  const ArgumentCheck check(stream, "silu_forward");
  check.compute_elements("x", x, x.numel());
  check.compute_elements("y", y, x.numel());
  dispatch(stream, "silu_forward", DM_TWINS(silu_forward), x, y);
}

void silu_backward(Stream& stream, const Tensor& x, const Tensor& dy, const Tensor& dx) {
  const ArgumentCheck check(stream, "silu_backward");
  check.compute_elements("x", x, x.numel());
  check.compute_elements("dy", dy, x.numel());
  check.compute_elements("dx", dx, x.numel());
  dispatch(stream, "silu_backward", DM_TWINS(silu_backward), x, dy, dx);
}

void sum_of_squares(Stream& stream, const Tensor& x, const Tensor& out) {
  const ArgumentCheck check(stream, "sum_of_squares");
  check.elements("x", x, x.numel(), DType::f32);
  check.tensor("out", out, Shape{1}, DType::f32);
  dispatch(stream, "sum_of_squares", DM_TWINS(sum_of_squares), x, out);
}

}  // namespace dm
