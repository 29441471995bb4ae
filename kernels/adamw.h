// One AdamW update over a flat range of parameters.
#pragma once

#include <cstdint>

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

struct AdamWStep {
  float lr = 0;
  float beta1 = 0.9f;
  float beta2 = 0.95f;
  float epsilon = 1e-8f;
  float weight_decay = 0;       ///< Decoupled; 0 for parameters on the no-decay list.
  std::int64_t step = 1;        ///< 1 for the first update: the exponent of the bias corrections.
  float gradient_scale = 1.0f;  ///< Multiplies the gradient first (clipping).
};

/// g = gradient_scale · gradient;  m = β₁ m + (1 − β₁) g;  v = β₂ v + (1 − β₂) g²;
/// master −= lr · (m / (1 − β₁^step) / (sqrt(v / (1 − β₂^step)) + ε) + weight_decay · master);  value = master
/// (Loshchilov & Hutter, "Decoupled weight decay regularization", 2019; decay multiplied by lr as in PyTorch).
///
/// gradient, first_moment, second_moment, master [n] f32; value [n] f32 or bf16 (rounded to nearest), may alias master.
/// Element-wise: the result does not depend on how a range is cut. Bias corrections in double.
using AdamWOp = void(Stream& stream, const AdamWStep& step, const Tensor& gradient, const Tensor& first_moment,
                     const Tensor& second_moment, const Tensor& master, const Tensor& value);
AdamWOp adamw;
namespace cpu {
AdamWOp adamw;
}
namespace cuda {
AdamWOp adamw;
}

}  // namespace dm
