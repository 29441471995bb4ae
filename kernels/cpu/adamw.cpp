// AdamW on the CPU: one pass over gradient, moments, master and value.
#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cpu/loops.h"

namespace dm::cpu {
namespace {

/// `value` may be `master` itself (a float32 model has one copy of its parameters).
template <class Value>
void update(const AdamWStep& step, std::int64_t n, const float* gradient, float* first_moment, float* second_moment,
            float* master, Value* value) {
  const auto exponent = static_cast<double>(step.step);
  const auto correct1 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(step.beta1), exponent)));
  const auto correct2 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(step.beta2), exponent)));
  const float beta1 = step.beta1, beta2 = step.beta2, rest1 = 1.0f - beta1, rest2 = 1.0f - beta2;
  const float lr = step.lr, epsilon = step.epsilon, decay = step.weight_decay, scale = step.gradient_scale;
  DM_ELEMENTWISE
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = scale * gradient[i];
    const float m = beta1 * first_moment[i] + rest1 * g;
    const float v = beta2 * second_moment[i] + rest2 * (g * g);
    const float w = master[i];
    const float updated = w - lr * (m * correct1 / (std::sqrt(v * correct2) + epsilon) + decay * w);
    first_moment[i] = m;
    second_moment[i] = v;
    master[i] = updated;
    value[i] = static_cast<Value>(updated);
  }
}

}  // namespace

void adamw(Stream&, const AdamWStep& step, const Tensor& gradient, const Tensor& first_moment, const Tensor& second_moment,
           const Tensor& master, const Tensor& value) {
  const auto run = [&](auto* to) {
    update(step, master.numel(), gradient.as<float>(), first_moment.as<float>(), second_moment.as<float>(),
           master.as<float>(), to);
  };
  if (value.dtype() == DType::bf16) {
    run(value.as<BFloat16>());
  } else {
    run(value.as<float>());
  }
}

}  // namespace dm::cpu
