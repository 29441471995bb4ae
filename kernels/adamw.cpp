// The checks of the AdamW update.
#include "kernels/adamw.h"

#include "kernels/check.h"
#include "kernels/dispatch.h"

namespace dm {

void adamw(Stream& stream, const AdamWStep& step, const Tensor& gradient, const Tensor& first_moment,
           const Tensor& second_moment, const Tensor& master, const Tensor& value) {
  const ArgumentCheck check(stream, "adamw");
  const std::int64_t n = gradient.numel();
  check.elements("gradient", gradient, n, DType::f32);
  check.elements("first_moment", first_moment, n, DType::f32);
  check.elements("second_moment", second_moment, n, DType::f32);
  check.elements("master", master, n, DType::f32);
  check.elements("value", value, n, value.dtype() == DType::bf16 ? DType::bf16 : DType::f32);
  check.that(step.step >= 1, "step counts from 1");
  dispatch(stream, "adamw", DM_TWINS(adamw), step, gradient, first_moment, second_moment, master, value);
}

}  // namespace dm
