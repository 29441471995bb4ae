// Warm-up and decay.
#include "launch/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace dm {

double learning_rate(const TrainOptions::Optimizer& optimizer, std::int64_t steps, std::int64_t step) {
  const std::int64_t warmup = optimizer.warmup_steps;
  if (step <= warmup) return optimizer.lr * static_cast<double>(step) / static_cast<double>(warmup);
  if (optimizer.schedule == "constant") return optimizer.lr;
  const double span = static_cast<double>(std::max<std::int64_t>(steps - warmup, 1));
  const double progress = std::min(static_cast<double>(step - warmup) / span, 1.0);
  const double remaining =
      optimizer.schedule == "linear" ? 1.0 - progress : 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  return optimizer.min_lr + (optimizer.lr - optimizer.min_lr) * remaining;
}

}  // namespace dm
