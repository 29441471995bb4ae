// RMSNorm between layers: every rank adds and normalises its own rows, and the group gathers them.
#pragma once

#include "kernels/rmsnorm.h"
#include "model/tensor_group.h"

namespace dm {

/// Ends the sum of part `i` of `update` (absent: of residual, which has no inbox), computes add_rmsnorm_forward in place of
/// the own rows of residual, and starts to gather that part of x, which `TensorGroup::finish` ends. Of residual and rstd own
/// rows alone are written.
inline void norm_forward(Stream& stream, TensorGroup& group, const Parts& parts, int i, const Tensor& residual,
                         const Tensor& update, const Tensor& weight, const Tensor& x, const Tensor& rstd) {
  const Tensor own = parts.own(residual, i), more = group.finish(stream, i);
  add_rmsnorm_forward(stream, own, update ? parts.own(update, i) : Tensor(), more, weight, own, parts.own(x, i),
                      parts.own(rstd, i));
  group.start_gather(stream, parts, x, i, 1);
}

/// Ends the sums of the parts of dx, x's cotangent, and computes rmsnorm_backward of the own rows, whose dupdate takes dx's
/// place. Starts to gather the parts of `gathered`, which is dx or dresidual. dweight += the own rows' part.
inline void norm_backward(Stream& stream, TensorGroup& group, const Parts& parts, const Tensor& dx, const Tensor& x,
                          const Tensor& rstd, const Tensor& weight, const Tensor& dresidual, const Tensor& dweight,
                          const Tensor& gathered) {
  for (int i = 0; i < parts.count(); ++i) {
    const Tensor own = parts.own(dx, i), more = group.finish(stream, i);
    rmsnorm_backward(stream, own, more, parts.own(x, i), parts.own(rstd, i), weight, parts.own(dresidual, i), own, dweight);
  }
  group.start_gather(stream, parts, gathered, 0, parts.count());
}

}  // namespace dm
