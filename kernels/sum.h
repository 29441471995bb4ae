// Adding up a tensor into one scalar.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

/// out[0] += Σ x. x f32 of any size; out [1] f32. Summed in double in a fixed order and rounded once: same bits every run.
using AddSumOp = void(Stream& stream, const Tensor& x, const Tensor& out);
AddSumOp add_sum;
namespace cpu {
AddSumOp add_sum;
}
namespace cuda {
AddSumOp add_sum;
}

}  // namespace dm
