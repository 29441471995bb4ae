// The checks of the repeated exponential.
#include "kernels/repeated_exp2.h"

#include "kernels/check.h"
#include "kernels/dispatch.h"

namespace dm {

void repeated_exp2(Stream& stream, const Tensor& x, std::int64_t rounds) {
  const ArgumentCheck check(stream, "repeated_exp2");
  check.elements("x", x, x.numel(), DType::f32);
  dispatch(stream, "repeated_exp2", DM_TWINS(repeated_exp2), x, rounds);
}

}  // namespace dm
