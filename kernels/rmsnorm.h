// Residual addition with RMSNorm, and its backward.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

/// The epsilon of every RMSNorm of the model (public Mamba checkpoints).
inline constexpr float kRmsNormEpsilon = 1e-5f;

/// residual_out = residual + update;  rstd = 1 / sqrt(mean(residual_out²) + eps);  out = residual_out · rstd ⊙ weight
/// (Zhang & Sennrich, "Root mean square layer normalization", 2019).
///
/// residual, residual_out [.., C] f32; update [.., C] f32 or the compute dtype, may be absent (then residual_out may be
/// residual itself, which is left as it is); weight [C] f32; out [.., C] compute dtype; rstd [rows] f32.
/// residual_out may alias residual. Statistics in float32 or better. Same bits every run.
using AddRmsNormForwardOp = void(Stream& stream, const Tensor& residual, const Tensor& update, const Tensor& weight,
                                 const Tensor& residual_out, const Tensor& out, const Tensor& rstd);
AddRmsNormForwardOp add_rmsnorm_forward;

/// With x̂ = residual · rstd:  dresidual += rstd · (dout ⊙ weight − x̂ · mean(dout ⊙ weight ⊙ x̂));
/// dweight += Σ_rows dout ⊙ x̂.
///
/// dupdate = dresidual after that: the cotangent of the update, in the compute dtype.
///
/// dout [.., C]; residual [.., C] f32 (what the forward normalised, its residual_out); rstd [rows] f32; weight [C];
/// dresidual [.., C] f32 and dweight [C] f32, both accumulated. dupdate
/// [.., C] compute dtype, may be absent. Rows are summed in a fixed order: same bits every run.
using RmsNormBackwardOp = void(Stream& stream, const Tensor& dout, const Tensor& residual, const Tensor& rstd,
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
