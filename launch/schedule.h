// The learning rate of a step.
#pragma once

#include <cstdint>

#include "launch/train_options.h"

namespace dm {

/// Linear warm-up from lr / warmup_steps to the peak over `warmup_steps`, then, over the rest of `steps`, cosine or linear
/// decay to `min_lr`, or constant. `step` counts from 1; after `steps` the rate stays at its last value.
double learning_rate(const TrainOptions::Optimizer& optimizer, std::int64_t steps, std::int64_t step);

}  // namespace dm
