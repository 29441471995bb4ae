// RMSNorm between layers: every rank adds and normalises its own rows, and the group gathers them.
#pragma once

#include "kernels/rmsnorm.h"
#include "model/tensor_group.h"

namespace dm {

/// Ends the sums of the pieces of `update` (absent: of residual), computes add_rmsnorm_forward in place of the own rows of
/// residual, and starts to gather the pieces of x, which `TensorGroup::finish` ends. Of residual and rstd own rows alone are
/// written.
inline void norm_forward(Stream& stream, TensorGroup& group, const RowPieces& rows, const Tensor& residual,
                         const Tensor& update, const Tensor& weight, const Tensor& x, const Tensor& rstd) {
  for (int i = 0; i < rows.count(); ++i) {
    const Tensor own = rows.own(residual, i);
    group.finish(stream, i);
    add_rmsnorm_forward(stream, own, update ? rows.own(update, i) : Tensor(), weight, own, rows.own(x, i),
                        rows.own(rstd, i));
    group.start_gather(stream, rows, x, i);
  }
}

/// Ends the sums of the pieces of dx, x's cotangent, and computes rmsnorm_backward of the own rows, whose dupdate takes dx's
/// place. Starts to gather the pieces of `gathered`, which is dx or dresidual. dweight += the own rows' part.
inline void norm_backward(Stream& stream, TensorGroup& group, const RowPieces& rows, const Tensor& dx, const Tensor& x,
                          const Tensor& rstd, const Tensor& weight, const Tensor& dresidual, const Tensor& dweight,
                          const Tensor& gathered) {
  for (int i = 0; i < rows.count(); ++i) {
    const Tensor own = rows.own(dx, i);
    group.finish(stream, i);
    rmsnorm_backward(stream, own, rows.own(x, i), rows.own(rstd, i), weight, rows.own(dresidual, i), own, dweight);
    group.start_gather(stream, rows, gathered, i);
  }
}

}  // namespace dm
