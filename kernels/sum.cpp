// Checks and dispatch of the sum.
#include "kernels/sum.h"

#include "kernels/dispatch.h"

namespace dm {

void add_sum(Stream& stream, const Tensor& x, const Tensor& out) {
  require(x.dtype() == DType::f32 && out.dtype() == DType::f32, "add_sum: x and out are float32");
  require(out.numel() == 1, "add_sum: out has one element");
  dispatch(stream, "add_sum", DM_TWINS(add_sum), x, out);
}

}  // namespace dm
