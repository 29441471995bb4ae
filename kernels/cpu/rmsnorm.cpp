// RMSNorm on the CPU: a row stays in the first-level cache between its two passes.
#include "kernels/rmsnorm.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/cpu/loops.h"

namespace dm::cpu {
namespace {

/// x [columns] + row `row` of each tensor of more [K, rows, columns], in `total`; x itself where there is no more.
const float* with_more(const float* x, const Tensor& more, std::int64_t row, std::int64_t columns,
                       std::vector<float>& total) {
  if (!more) return x;
  total.assign(x, x + columns);
  float* sum = total.data();
  for (std::int64_t k = 0; k < more.size(0); ++k) {
    const float* from = more.as<float>() + (k * more.size(1) + row) * columns;
    DM_ELEMENTWISE
    for (std::int64_t c = 0; c < columns; ++c) sum[c] += from[c];
  }
  return sum;
}

}  // namespace

void add_rmsnorm_forward(Stream&, const Tensor& residual, const Tensor& update, const Tensor& more, const Tensor& weight,
                         const Tensor& residual_out, const Tensor& out, const Tensor& rstd) {
  const std::int64_t columns = weight.numel();
  const float* w = weight.as<float>();
  std::vector<float> total;
  for (std::int64_t row = 0; row < residual.rows(); ++row) {
    const float* r = residual.as<float>() + row * columns;
    float* sum = residual_out.as<float>() + row * columns;
    if (update) {
      const float* u = with_more(update.as<float>() + row * columns, more, row, columns, total);
      DM_ELEMENTWISE
      for (std::int64_t c = 0; c < columns; ++c) sum[c] = r[c] + u[c];
    } else if (sum != r) {
      std::memcpy(sum, r, static_cast<std::size_t>(columns) * sizeof(float));
    }
    const float squares = lane_sum<float, 32>(columns, [sum](std::int64_t c) { return sum[c] * sum[c]; });
    const float scale = 1.0f / std::sqrt(squares / static_cast<float>(columns) + kRmsNormEpsilon);
    rstd.as<float>()[row] = scale;
    float* y = out.as<float>() + row * columns;
    for (std::int64_t c = 0; c < columns; ++c) y[c] = sum[c] * scale * w[c];
  }
}

void rmsnorm_backward(Stream&, const Tensor& dout, const Tensor& more, const Tensor& x, const Tensor& rstd,
                      const Tensor& weight, const Tensor& dresidual, const Tensor& dupdate, const Tensor& dweight) {
  constexpr float kSmallest = std::numeric_limits<float>::min();
  const std::int64_t columns = weight.numel();
  const float* w = weight.as<float>();
  float* dw = dweight.as<float>();
  std::vector<float> total;
  for (std::int64_t row = 0; row < x.rows(); ++row) {
    const float* dy = with_more(dout.as<float>() + row * columns, more, row, columns, total);
    const float* y = x.as<float>() + row * columns;
    float* dx = dresidual.as<float>() + row * columns;
    const float scale = rstd.as<float>()[row];
    const float mean =
        lane_sum<float, 32>(columns, [=](std::int64_t c) { return dy[c] * y[c]; }) / static_cast<float>(columns);
    for (std::int64_t c = 0; c < columns; ++c) {
      const bool divides = std::abs(w[c]) >= kSmallest;
      const float normed = (divides ? y[c] : 0.0f) / (divides ? w[c] : 1.0f);
      dx[c] += scale * (dy[c] * w[c] - normed * mean);
      dw[c] += dy[c] * normed;
    }
    if (dupdate) std::memcpy(dupdate.as<float>() + row * columns, dx, static_cast<std::size_t>(columns) * sizeof(float));
  }
}

}  // namespace dm::cpu
