// The float exponentials and activations of the CPU kernels against double, and at the ends of their range.
#include "kernels/cpu/vector_math.h"

#include <cmath>
#include <limits>

#include <gtest/gtest.h>

namespace dm {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

double exact_sigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}
double exact_softplus(double x) {
  return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
}

/// The largest error of `f` over [low, high], sampled; it is called on a register, whose lanes must all agree with a float.
template <class F, class Exact>
double worst_error(F f, Exact exact, float low, float high, bool relative = true) {
  constexpr int kSamples = 100'000;
  double worst = 0;
  for (int i = 0; i < kSamples; ++i) {
    const float x = low + (high - low) * ((static_cast<float>(i) + 0.5f) / kSamples);
    const cpu::FloatLanes lanes = f(x + cpu::FloatLanes{});
    const double expected = exact(static_cast<double>(x));
    for (const float value : {lanes[0], lanes[cpu::kLanes - 1], f(x)}) {
      const double error = std::abs(value - expected) / (relative ? std::abs(expected) : 1.0);
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

const auto kExp = [](auto x) { return cpu::exp(x); };
const auto kExpNonpositive = [](auto x) { return cpu::exp_nonpositive(x); };
const auto kExp2Nonpositive = [](auto x) { return cpu::exp2_nonpositive(x); };
const auto kSigmoid = [](auto x) { return cpu::sigmoid(x); };
const auto kSilu = [](auto x) { return cpu::silu(x); };
const auto kSiluDerivative = [](auto x) { return cpu::silu_derivative(x); };
const auto kSoftplus = [](auto x) { return cpu::softplus(x); };

TEST(VectorMath, ExponentialsAreAccurate) {
  const auto exact_exp = [](double x) { return std::exp(x); };
  const auto exact_exp2 = [](double x) { return std::exp2(x); };
  EXPECT_LT(worst_error(kExp, exact_exp, -87.3f, 88.7f), 2e-7);
  EXPECT_LT(worst_error(kExp, exact_exp, -1.0f, 1.0f), 2e-7);
  EXPECT_LT(worst_error(kExpNonpositive, exact_exp, -87.3f, 0.0f), 2e-7);
  EXPECT_LT(worst_error(kExp2Nonpositive, exact_exp2, -125.9f, 0.0f), 2e-7);
  EXPECT_LT(worst_error(kExp2Nonpositive, exact_exp2, -0.01f, 0.0f), 1e-7);
}

TEST(VectorMath, ActivationsAreAccurate) {
  for (const float range : {2.0f, 20.0f, 87.0f}) {
    EXPECT_LT(worst_error(kSigmoid, exact_sigmoid, -range, range), 4e-7) << range;
    EXPECT_LT(worst_error(
                  kSilu, [](double x) { return x * exact_sigmoid(x); }, -range, range),
              5e-7)
        << range;
    const auto derivative = [](double x) { return exact_sigmoid(x) * (1 + x * exact_sigmoid(-x)); };
    EXPECT_LT(worst_error(kSiluDerivative, derivative, -range, range, false), 5e-7) << range;
    EXPECT_LT(worst_error(kSoftplus, exact_softplus, -range, range), 4e-7) << range;
  }
}

TEST(VectorMath, Saturates) {
  EXPECT_EQ(cpu::exp(0.0f), 1.0f);
  EXPECT_EQ(cpu::exp(88.73f), kInfinity);
  EXPECT_EQ(cpu::exp(kInfinity), kInfinity);
  EXPECT_EQ(cpu::exp(-104.0f), 0.0f);
  EXPECT_EQ(cpu::exp(-kInfinity), 0.0f);
  EXPECT_NEAR(cpu::exp(-100.0f), 3.78e-44f, 2e-45f);
  for (const float x : {-88.0f, -1e4f, -kInfinity}) EXPECT_EQ(cpu::exp_nonpositive(x), 0.0f) << x;
  for (const float x : {-127.0f, -1e4f, -kInfinity}) EXPECT_EQ(cpu::exp2_nonpositive(x), 0.0f) << x;
  for (float x = -127.5f; x < -125.5f; x += 0.01f) {
    EXPECT_GE(cpu::exp2_nonpositive(x), 0.0f) << x;
    EXPECT_LE(cpu::exp2_nonpositive(x), 0x1p-125f) << x;
    EXPECT_GE(cpu::exp_nonpositive(x / cpu::kLog2E), 0.0f) << x;
  }
  EXPECT_EQ(cpu::exp2_nonpositive(0.0f), 1.0f);
  EXPECT_EQ(cpu::sigmoid(kInfinity), 1.0f);
  EXPECT_EQ(cpu::sigmoid(-kInfinity), 0.0f);
  EXPECT_EQ(cpu::silu(1e30f), 1e30f);
  EXPECT_EQ(cpu::silu_derivative(1e30f), 1.0f);
  EXPECT_EQ(cpu::silu(-1e30f), 0.0f);
  EXPECT_EQ(cpu::softplus(kInfinity), kInfinity);
  EXPECT_EQ(cpu::softplus(1e30f), 1e30f);
  EXPECT_EQ(cpu::softplus(-kInfinity), 0.0f);
}

template <class F>
void expect_nan_propagates(F f) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float x : {nan, -nan}) {
    EXPECT_TRUE(std::isnan(f(x)));
    cpu::FloatLanes lanes = {};
    lanes[1] = x;
    lanes = f(lanes);
    EXPECT_FALSE(std::isnan(lanes[0]));
    EXPECT_TRUE(std::isnan(lanes[1]));
  }
}

TEST(VectorMath, NanPropagates) {
  expect_nan_propagates(kExp);
  expect_nan_propagates(kExpNonpositive);
  expect_nan_propagates(kExp2Nonpositive);
  expect_nan_propagates(kSigmoid);
  expect_nan_propagates(kSilu);
  expect_nan_propagates(kSiluDerivative);
  expect_nan_propagates(kSoftplus);
}

}  // namespace
}  // namespace dm
