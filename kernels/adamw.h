// AdamW over a flat range of parameters, and the numbers of a step that it reads from the device.
#pragma once

#include <cstdint>

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

struct AdamWSettings {
  float lr = 0;
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float epsilon = 1e-8f;
  float weight_decay = 0;  ///< Decoupled; 0 for parameters on the no-decay list.
};

/// Decides on the device what the updates of a step need to know of its results, so that the host need not wait for them.
///
/// When loss_sum and norm_squared are finite: updates += 1 and control = (gradient scale, 1 / (1 − β₁^updates),
/// 1 / (1 − β₂^updates)); the gradient scale is clip / norm where clip > 0 and norm = sqrt(norm_squared) > clip, and 1
/// elsewhere. Otherwise control[0] = 0, which means that nobody updates, and updates stays.
/// loss_sum, norm_squared [1] f32; updates [1] i32, read and written; control [3] f32, overwritten. Computed in double.
using StepControlOp = void(Stream& stream, const Tensor& loss_sum, const Tensor& norm_squared, float clip, float beta1,
                           float beta2, const Tensor& updates, const Tensor& control);
StepControlOp step_control;

/// With (scale, c₁, c₂) = control:  g = scale · gradient;  m = β₁ m + (1 − β₁) g;  v = β₂ v + (1 − β₂) g²;
/// master −= lr · (m c₁ / (sqrt(v c₂) + ε) + weight_decay · master);  value = master. Nothing at all when scale is 0.
/// (Loshchilov & Hutter, "Decoupled weight decay regularization", 2019; decay multiplied by lr as in PyTorch).
///
/// gradient, first_moment, second_moment, master [n] f32; value [n] f32 or bf16 (rounded to nearest), may alias master;
/// control [3] f32. Element-wise: the result does not depend on how a range is cut.
using AdamWOp = void(Stream& stream, const AdamWSettings& settings, const Tensor& control, const Tensor& gradient,
                     const Tensor& first_moment, const Tensor& second_moment, const Tensor& master, const Tensor& value);
AdamWOp adamw;

namespace cpu {
StepControlOp step_control;
AdamWOp adamw;
}  // namespace cpu
namespace cuda {
StepControlOp step_control;
AdamWOp adamw;
}  // namespace cuda

}  // namespace dm
