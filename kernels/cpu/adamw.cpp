// AdamW on the CPU: one pass over gradient, moments, master and value.
#include "kernels/adamw.h"

#include <cmath>

#include "kernels/cpu/loops.h"

namespace dm::cpu {
namespace {

/// `value` may be `master` itself (a float32 model has one copy of its parameters).
template <class Value>
void update(const AdamWSettings& settings, const float* control, std::int64_t n, const float* gradient, float* first_moment,
            float* second_moment, float* master, Value* value) {
  const float scale = control[0], correct1 = control[1], correct2 = control[2];
  const float beta1 = settings.beta1, beta2 = settings.beta2, rest1 = 1.0f - beta1, rest2 = 1.0f - beta2;
  const float lr = settings.lr, epsilon = settings.epsilon, decay = settings.weight_decay;
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

void step_control(Stream&, const Tensor& loss_sum, const Tensor& norm_squared, float clip, float beta1, float beta2,
                  const Tensor& updates, const Tensor& control) {
  float* out = control.as<float>();
  const auto squared = static_cast<double>(*norm_squared.as<float>());
  if (!std::isfinite(*loss_sum.as<float>()) || !std::isfinite(squared)) {
    out[0] = 0;
    return;
  }
  const double norm = std::sqrt(squared), count = ++*updates.as<std::int32_t>();
  const auto limit = static_cast<double>(clip);
  out[0] = limit > 0 && norm > limit ? static_cast<float>(limit / norm) : 1.0f;
  out[1] = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(beta1), count)));
  out[2] = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(beta2), count)));
}

void adamw(Stream&, const AdamWSettings& settings, const Tensor& control, const Tensor& gradient, const Tensor& first_moment,
           const Tensor& second_moment, const Tensor& master, const Tensor& value) {
  if (control.as<float>()[0] == 0) return;
  const auto run = [&](auto* to) {
    update(settings, control.as<float>(), master.numel(), gradient.as<float>(), first_moment.as<float>(),
           second_moment.as<float>(), master.as<float>(), to);
  };
  if (value.dtype() == DType::bf16) {
    run(value.as<BFloat16>());
  } else {
    run(value.as<float>());
  }
}

}  // namespace dm::cpu
