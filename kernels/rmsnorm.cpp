// The checks of RMSNorm with residual addition, and of its backward.
#include "kernels/rmsnorm.h"

#include "kernels/check.h"
#include "kernels/dispatch.h"

namespace dm {

void add_rmsnorm_forward(Stream& stream, const Tensor& residual, const Tensor& update, const Tensor& more,
                         const Tensor& weight, const Tensor& residual_out, const Tensor& out, const Tensor& rstd) {
  const ArgumentCheck check(stream, "add_rmsnorm_forward");
  check.tensor("weight", weight, Shape{weight.numel()}, DType::f32);
  const std::int64_t columns = weight.numel(), rows = residual.rows();
  check.rows("residual", residual, rows, columns, DType::f32);
  if (update) check.compute_rows("update", update, rows, columns);
  if (more) {
    check.that(static_cast<bool>(update), "more of an absent update");
    check.tensor("more", more, Shape{more.size(0), rows, columns}, update.dtype());
  }
  check.rows("residual_out", residual_out, rows, columns, DType::f32);
  check.compute_rows("out", out, rows, columns);
  check.elements("rstd", rstd, rows, DType::f32);
  dispatch(stream, "add_rmsnorm_forward", DM_TWINS(add_rmsnorm_forward), residual, update, more, weight, residual_out, out,
           rstd);
}

void rmsnorm_backward(Stream& stream, const Tensor& dout, const Tensor& more, const Tensor& x, const Tensor& rstd,
                      const Tensor& weight, const Tensor& dresidual, const Tensor& dupdate, const Tensor& dweight) {
  const ArgumentCheck check(stream, "rmsnorm_backward");
  check.tensor("weight", weight, Shape{weight.numel()}, DType::f32);
  const std::int64_t columns = weight.numel(), rows = x.rows();
  check.compute_rows("x", x, rows, columns);
  check.compute_rows("dout", dout, rows, columns);
  if (more) check.tensor("more", more, Shape{more.size(0), rows, columns}, dout.dtype());
  check.elements("rstd", rstd, rows, DType::f32);
  check.rows("dresidual", dresidual, rows, columns, DType::f32);
  if (dupdate) check.compute_rows("dupdate", dupdate, rows, columns);
  check.tensor("dweight", dweight, weight.shape(), DType::f32);
  dispatch(stream, "rmsnorm_backward", DM_TWINS(rmsnorm_backward), dout, more, x, rstd, weight, dresidual, dupdate, dweight);
}

}  // namespace dm
