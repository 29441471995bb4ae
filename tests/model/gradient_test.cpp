// The whole model's gradient against directional finite differences of its loss, for every parameter.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/model/model_rank.h"

namespace dm {
namespace {

/// Of the gradient's norm: what a float32 loss leaves of a finite difference. Measured errors are below a third of it.
constexpr double kTolerance = 3e-3;
constexpr int kDirections = 4;
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

  /// The derivative of the loss along ±1 in every element of `name`, by central differences of fourth order, and the
  /// direction itself. The step is small against the parameter's elements.
  double slope(const std::string& name, int number, float step, std::vector<float>& direction) {
    const Tensor value = rank_.store().parameter(name).value;
    const std::vector<float> kept(value.as<float>(), value.as<float>() + value.numel());
    const RandomStream random(static_cast<std::uint64_t>(number), name);
    direction.clear();
    for (std::size_t i = 0; i < kept.size(); ++i) direction.push_back(random.uniform(i) < 0.5f ? -1.0f : 1.0f);
    const auto at = [&](float steps) {
      for (std::size_t i = 0; i < kept.size(); ++i) value.as<float>()[i] = kept[i] + steps * step * direction[i];
      return loss();
    };
    const double near = at(1) - at(-1), far = at(2) - at(-2);
    std::copy(kept.begin(), kept.end(), value.as<float>());
    return (8 * near - far) / (12 * static_cast<double>(step));
  }

  /// The largest |slope − gradient · direction| over the directions, as a part of the norm of the true gradient; of two step
  /// sizes the better, since rounding spoils the small one for some parameters and curvature the large one for others.
  double error(const std::string& name, const std::vector<float>& gradient) {
    double norm = 0, worst = 0;
    for (const float g : rank_.gradient(name)) norm += static_cast<double>(g) * static_cast<double>(g);
    EXPECT_GT(norm, 0) << name << " has no gradient to check";
    std::vector<float> direction;
    for (int number = 0; number < kDirections; ++number) {
      const double small_step = slope(name, number, 1e-3f, direction), large_step = slope(name, number, 4e-3f, direction);
      double expected = 0;
      for (std::size_t i = 0; i < gradient.size(); ++i) expected += static_cast<double>(gradient[i] * direction[i]);
      worst = std::max(worst, std::min(std::abs(small_step - expected), std::abs(large_step - expected)));
    }
    return worst / std::sqrt(norm);
  }

  ModelRank rank_{small_config(GetParam(), kLayers)};
  Batch batch_ = Batch::random(5, 2, 37, rank_.config().vocabulary);
};

TEST_P(GradientCheck, EveryParameterAgreesWithFiniteDifferences) {
  const double mean = rank_.forward_backward(batch_);
  EXPECT_NEAR(mean, loss(), 1e-5 * mean);
  for (const ParameterStore::Entry& entry : rank_.store().entries()) {
    EXPECT_LT(error(entry.spec.name, rank_.gradient(entry.spec.name)), kTolerance) << entry.spec.name;
  }
}

TEST_P(GradientCheck, AGradientThatIsSlightlyWrongIsCaught) {
  rank_.forward_backward(batch_);
  for (const ParameterStore::Entry& entry : rank_.store().entries()) {
    const std::string& name = entry.spec.name;
    std::vector<float> scaled = rank_.gradient(name), with_a_hole = scaled;
    for (float& g : scaled) g *= 1.05f;
    EXPECT_GT(error(name, scaled), kTolerance) << name << " five per cent too large";
    for (std::size_t i = 0; i < with_a_hole.size(); i += 7) with_a_hole[i] = 0;
    EXPECT_GT(error(name, with_a_hole), kTolerance) << name << " with every seventh element lost";
  }
}

INSTANTIATE_TEST_SUITE_P(DenseDepth, GradientCheck, ::testing::Values(0, 2, kLayers));

}  // namespace
}  // namespace dm
