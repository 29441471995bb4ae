// The checks of the AdamW update and of what controls it.
#include "kernels/adamw.h"

#include "kernels/check.h"
#include "kernels/dispatch.h"

namespace dm {

void step_control(Stream& stream, const Tensor& loss_sum, const Tensor& norm_squared, float clip, float beta1, float beta2,
                  const Tensor& updates, const Tensor& control) {
  const ArgumentCheck check(stream, "step_control");
  check.elements("loss_sum", loss_sum, 1, DType::f32);
  check.elements("norm_squared", norm_squared, 1, DType::f32);
  check.elements("updates", updates, 1, DType::i32);
  check.elements("control", control, 3, DType::f32);
  dispatch(stream, "step_control", DM_TWINS(step_control), loss_sum, norm_squared, clip, beta1, beta2, updates, control);
}

void adamw(Stream& stream, const AdamWSettings& settings, const Tensor& control, const Tensor& gradient,
           const Tensor& first_moment, const Tensor& second_moment, const Tensor& master, const Tensor& value) {
  const ArgumentCheck check(stream, "adamw");
  const std::int64_t n = gradient.numel();
  check.elements("control", control, 3, DType::f32);
  check.elements("gradient", gradient, n, DType::f32);
  check.elements("first_moment", first_moment, n, DType::f32);
  check.elements("second_moment", second_moment, n, DType::f32);
  check.elements("master", master, n, DType::f32);
  check.elements("value", value, n, value.dtype() == DType::bf16 ? DType::bf16 : DType::f32);
  dispatch(stream, "adamw", DM_TWINS(adamw), settings, control, gradient, first_moment, second_moment, master, value);
}

}  // namespace dm
