// Residual addition with RMSNorm, and its backward.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

/// The epsilon of every RMSNorm of the model (public Mamba checkpoints).
inline constexpr float kRmsNormEpsilon = 1e-5f;

/// residual_out = residual + (update + Σ more);  rstd = 1 / sqrt(mean(residual_out²) + eps);  out = residual_out · rstd ⊙
/// weight (Zhang & Sennrich, "Root mean square layer normalization", 2019).
///
/// residual, residual_out [.., C] f32; update [.., C] f32 or the compute dtype, may be absent (then residual_out may be
/// residual itself, which is left as it is); more [K, rows, C] of update's dtype: other ranks' parts of the update, absent
/// where there are none; weight [C] f32; out [.., C] compute dtype; rstd [rows] f32. residual_out may alias residual.
/// Statistics in float32 or better. Same bits every run.
using AddRmsNormForwardOp = void(Stream& stream, const Tensor& residual, const Tensor& update, const Tensor& more,
                                 const Tensor& weight, const Tensor& residual_out, const Tensor& out, const Tensor& rstd);
AddRmsNormForwardOp add_rmsnorm_forward;

/// With x̂ = x / weight (0 where weight is 0 or denormal) and dy = dout + Σ more:
/// dresidual += rstd · (dy ⊙ weight − x̂ · mean(dy ⊙ x));  dweight += Σ_rows dy ⊙ x̂.
///
/// dupdate = dresidual after that: the cotangent of the update, in the compute dtype.
///
/// dout [.., C]; more [K, rows, C], other ranks' parts of it, or absent; x [.., C] (the forward's out: what was normalised
/// need not be kept); rstd [rows] f32; weight [C]; dresidual [.., C] f32 and dweight [C] f32, both accumulated; dupdate [..,
/// C] may be absent. dout, more, x and dupdate are of the compute dtype. x̂ carries the rounding of x, in bf16 2⁻⁹ of it at
/// most. A weight of exactly zero gets no gradient, for its x tells nothing of x̂. dupdate may be dout or x: a row is read
/// before it is written. Rows are summed in a fixed order: same bits every run.
using RmsNormBackwardOp = void(Stream& stream, const Tensor& dout, const Tensor& more, const Tensor& x, const Tensor& rstd,
                               const Tensor& weight, const Tensor& dresidual, const Tensor& dupdate, const Tensor& dweight);
RmsNormBackwardOp rmsnorm_backward;

namespace cpu {
AddRmsNormForwardOp add_rmsnorm_forward;
RmsNormBackwardOp rmsnorm_backward;
}  // namespace cpu
namespace cuda {
AddRmsNormForwardOp add_rmsnorm_forward;
RmsNormBackwardOp rmsnorm_backward;
}  // namespace cuda

}  // namespace dm
