// A known number of exponentials: what the rate of a device's exponential units is measured with.
#pragma once

#include <cstdint>

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

/// x ← 2^(−x), `rounds` times, element by element: x.numel() · rounds exponentials for one read and one write of x. x f32;
/// from any finite x it tends to 0.6412, where x = 2^(−x).
using RepeatedExp2Op = void(Stream& stream, const Tensor& x, std::int64_t rounds);
RepeatedExp2Op repeated_exp2;

namespace cpu {
RepeatedExp2Op repeated_exp2;
}
namespace cuda {
RepeatedExp2Op repeated_exp2;
}

}  // namespace dm
