// The small ops on flat data on the CPU: one pass over memory each.
#include "kernels/elementwise.h"

#include <algorithm>

#include "kernels/cpu/loops.h"
#include "kernels/cpu/vector_math.h"

namespace dm::cpu {

void fill(Stream&, const Tensor& x, float value) {
  std::fill_n(x.as<float>(), x.numel(), value);
}

void add_to(Stream&, const Tensor& x, const Tensor& y) {
  const float* from = x.as<float>();
  float* to = y.as<float>();
  const std::int64_t n = y.numel();
  DM_ELEMENTWISE
  for (std::int64_t i = 0; i < n; ++i) to[i] += from[i];
}

void convert(Stream&, const Tensor& x, const Tensor& y) {
  const std::int64_t n = x.numel();
  if (x.dtype() == DType::f32) {
    const float* from = x.as<float>();
    BFloat16* to = y.as<BFloat16>();
    for (std::int64_t i = 0; i < n; ++i) to[i] = BFloat16(from[i]);
  } else {
    const BFloat16* from = x.as<BFloat16>();
    float* to = y.as<float>();
    for (std::int64_t i = 0; i < n; ++i) to[i] = static_cast<float>(from[i]);
  }
}

void silu_forward(Stream&, const Tensor& x, const Tensor& y) {
  const float* from = x.as<float>();
  float* to = y.as<float>();
  const std::int64_t n = x.numel();
  DM_ELEMENTWISE
  for (std::int64_t i = 0; i < n; ++i) to[i] = silu(from[i]);
}

void silu_backward(Stream&, const Tensor& x, const Tensor& dy, const Tensor& dx) {
  const float* at = x.as<float>();
  const float* from = dy.as<float>();
  float* to = dx.as<float>();
  const std::int64_t n = x.numel();
  DM_ELEMENTWISE
  for (std::int64_t i = 0; i < n; ++i) to[i] = from[i] * silu_derivative(at[i]);
}

void sum_of_squares(Stream&, const Tensor& x, const Tensor& out) {
  const float* values = x.as<float>();
  const double sum = lane_sum<double, 32>(x.numel(), [values](std::int64_t i) {
    const auto value = static_cast<double>(values[i]);
    return value * value;
  });
  float& total = *out.as<float>();
  total = static_cast<float>(static_cast<double>(total) + sum);
}

}  // namespace dm::cpu
