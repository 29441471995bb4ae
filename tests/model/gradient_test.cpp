// The whole model's gradient against directional finite differences of its loss, for every parameter.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tests/model/model_rank.h"

namespace dm {
namespace {

/// Of the gradient's norm: what a float32 loss leaves of a finite difference. Measured errors are below a third of it.
constexpr double kTolerance = 3e-3;
constexpr std::uint64_t kDirections = 4;
constexpr std::int64_t kLayers = 4;

class GradientCheck : public ::testing::TestWithParam<std::int64_t> {
 protected:
  /// The mean cross-entropy in double from float32 logits: summing the loss in float32 would cost two digits.
  double loss() {
    const std::vector<float> logits = rank_.logits(batch_);
    const auto columns = static_cast<std::size_t>(rank_.config().padded_vocabulary());
    const auto valid = static_cast<std::size_t>(rank_.config().vocabulary);
    double sum = 0;
    for (std::size_t row = 0; row < batch_.targets.size(); ++row) {
      double exponentials = 0;
      for (std::size_t c = 0; c < valid; ++c) exponentials += std::exp(static_cast<double>(logits[row * columns + c]));
      sum += std::log(exponentials) -
             static_cast<double>(logits[row * columns + static_cast<std::size_t>(batch_.targets[row])]);
    }
    return sum / static_cast<double>(batch_.targets.size());
  }

  /// ±1 in every element of a parameter, and the loss's derivative along it measured with two steps.
  struct Slope {
    std::vector<float> direction;
    double small_step, large_step;
  };

  /// Central differences of fourth order.
  std::vector<Slope> slopes(const std::string& name) {
    const Tensor value = rank_.store().parameter(name).value;
    const std::vector<float> kept = rank_.value(name);
    std::vector<Slope> slopes;
    for (std::uint64_t number = 0; number < kDirections; ++number) {
      const RandomStream random(number, name);
      std::vector<float> direction;
      for (std::size_t i = 0; i < kept.size(); ++i) direction.push_back(random.uniform(i) < 0.5f ? -1.0f : 1.0f);
      const auto along = [&](float step) {
        const auto at = [&](float distance) {
          for (std::size_t i = 0; i < kept.size(); ++i) value.as<float>()[i] = kept[i] + distance * direction[i];
          return loss();
        };
        const double near = at(step) - at(-step), far = at(2 * step) - at(-2 * step);
        return (8 * near - far) / (12 * static_cast<double>(step));
      };
      const double small_step = along(1e-3f), large_step = along(4e-3f);
      slopes.push_back({std::move(direction), small_step, large_step});
    }
    std::copy(kept.begin(), kept.end(), value.as<float>());
    return slopes;
  }

  /// The largest |slope − gradient · direction| over the directions; of two steps the better, since rounding spoils the
  /// small one for some parameters and curvature the large one for others.
  static double error(const std::vector<Slope>& slopes, const std::vector<float>& gradient) {
    double worst = 0;
    for (const Slope& slope : slopes) {
      double expected = 0;
      for (std::size_t i = 0; i < gradient.size(); ++i) expected += static_cast<double>(gradient[i] * slope.direction[i]);
      worst = std::max(worst, std::min(std::abs(slope.small_step - expected), std::abs(slope.large_step - expected)));
    }
    return worst;
  }

  ModelRank rank_{small_config(GetParam(), kLayers)};
  Batch batch_ = Batch::random(5, 2, 37, rank_.config().vocabulary);
};

TEST_P(GradientCheck, EveryParameterAgreesWithFiniteDifferencesAndASlightlyWrongOneWouldNot) {
  const double mean = rank_.forward_backward(batch_);
  EXPECT_NEAR(mean, loss(), 1e-5 * mean);
  for (const ParameterStore::Entry& entry : rank_.store().entries()) {
    const std::string& name = entry.spec.name;
    const std::vector<float> gradient = rank_.gradient(name);
    const std::vector<Slope> measured = slopes(name);
    const double tolerance = kTolerance * relative_error(gradient, std::vector<float>(gradient.size()));
    EXPECT_GT(tolerance, 0) << name << " has no gradient to check";
    EXPECT_LT(error(measured, gradient), tolerance) << name;

    std::vector<float> scaled = gradient, with_holes = gradient;
    for (float& g : scaled) g *= 1.05f;
    for (std::size_t i = 0; i < with_holes.size(); i += 7) with_holes[i] = 0;
    EXPECT_GT(error(measured, scaled), tolerance) << name << " five per cent too large";
    EXPECT_GT(error(measured, with_holes), tolerance) << name << " with every seventh element lost";
  }
}

INSTANTIATE_TEST_SUITE_P(DenseDepth, GradientCheck, ::testing::Values(0, 2, kLayers));

}  // namespace
}  // namespace dm
