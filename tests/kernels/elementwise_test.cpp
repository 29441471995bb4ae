// Fill, add, convert, SiLU and the sum of squares: values, gradients, in-place use and sizes around the vector width.
#include "kernels/elementwise.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/kernels/oracle.h"

namespace dm {
namespace {

using oracle::error_of;
using oracle::Guarded;
using oracle::Overwritten;
using oracle::Random;

constexpr std::int64_t kSizes[] = {0, 1, 5, 16, 37, 1000};
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<double> exact_silu(std::vector<double> x) {
  for (double& value : x) value = value / (1 + std::exp(-value));
  return x;
}

class Elementwise : public ::testing::Test {
 protected:
  Stream stream{Device::cpu()};
};

TEST_F(Elementwise, FillWritesEveryElement) {
  for (const std::int64_t n : kSizes) {
    Overwritten x({n});
    fill(stream, x.tensor(), -2.5f);
    for (const float value : x.values()) ASSERT_EQ(value, -2.5f);
  }
}

TEST_F(Elementwise, AddToAdds) {
  for (const std::int64_t n : kSizes) {
    Random x("x", {n}), y("y", {n}), before("y", {n});
    add_to(stream, x.tensor(), y.tensor());
    for (std::int64_t i = 0; i < n; ++i) ASSERT_EQ(y[i], before[i] + x[i]);
  }
}

TEST_F(Elementwise, ConvertRoundsToNearestEvenAndBack) {
  for (const std::int64_t n : kSizes) {
    Random x("x", {n});
    if (n > 1) x[0] = 1.0f + 1.0f / 256, x[1] = 1.0f + 3.0f / 256;  // ties: to 1 and to 1 + 4/256, whose last bits are even
    std::vector<BFloat16> rounded(static_cast<std::size_t>(n));
    Overwritten back({n});
    const Tensor narrow = Tensor::of(rounded.data(), {n});
    convert(stream, x.tensor(), narrow);
    convert(stream, narrow, back.tensor());
    for (std::int64_t i = 0; i < n; ++i) ASSERT_NEAR(back[i], x[i], std::abs(x[i]) / 256);
    if (n <= 1) continue;
    EXPECT_EQ(back[0], 1.0f);
    EXPECT_EQ(back[1], 1.0f + 4.0f / 256);
  }
  Random x("x", {8}), y("y", {8});
  EXPECT_EQ(error_of([&] { convert(stream, x.tensor(), y.tensor()); }),
            "convert: y is float32 [8], expected bfloat16 of 8 elements");
}

TEST_F(Elementwise, SiluIsAccurateAndMayWriteInPlace) {
  for (const std::int64_t n : kSizes) {
    Random x("x", {n}, 4.0f);
    Overwritten y({n});
    const auto expected = exact_silu(x.as_double());
    silu_forward(stream, x.tensor(), y.tensor());
    EXPECT_CLOSE(y, expected, 1e-6) << n;
    silu_forward(stream, x.tensor(), x.tensor());
    EXPECT_TRUE(oracle::same_bits(x.values(), y.values()));
  }
}

TEST_F(Elementwise, SiluOfExtremes) {
  Guarded<float> x({3}, 0.0f);
  x[0] = kNaN, x[1] = 1e30f, x[2] = -1e30f;
  Overwritten y({3});
  silu_forward(stream, x.tensor(), y.tensor());
  EXPECT_TRUE(std::isnan(y[0]));
  EXPECT_EQ(y[1], 1e30f);
  EXPECT_EQ(y[2], 0.0f);
}

TEST_F(Elementwise, SiluBackwardIsTheGradient) {
  for (const std::int64_t n : kSizes) {
    Random x("x", {n}, 4.0f), dy("dy", {n});
    Overwritten dx({n});
    std::vector<double> xs = x.as_double();
    const auto loss = [&] { return oracle::dot(exact_silu(xs), dy.as_double()); };
    const auto expected = oracle::finite_differences(xs, loss);
    silu_backward(stream, x.tensor(), dy.tensor(), dx.tensor());
    EXPECT_CLOSE(dx, expected, 1e-6) << n;
    silu_backward(stream, x.tensor(), dy.tensor(), dy.tensor());
    EXPECT_TRUE(oracle::same_bits(dx.values(), dy.values()));
  }
}

TEST_F(Elementwise, SumOfSquaresAddsInDouble) {
  for (const std::int64_t n : kSizes) {
    Random x("x", {n});
    Guarded<float> out({1}, 0.5f), again({1}, 0.5f);
    sum_of_squares(stream, x.tensor(), out.tensor());
    sum_of_squares(stream, x.tensor(), again.tensor());
    const std::vector<double> xs = x.as_double();
    EXPECT_EQ(out[0], static_cast<float>(0.5 + oracle::dot(xs, xs))) << n;
    EXPECT_EQ(out[0], again[0]);
  }
}

TEST_F(Elementwise, SumOfSquaresNeitherOverflowsNorDropsSmallOnes) {
  Guarded<float> x({1 << 20}, 1.0f);
  x[0] = 4096.0f;  // in float32 the ones behind 2^24 would vanish
  Guarded<float> out({1}, 0.0f);
  sum_of_squares(stream, x.tensor(), out.tensor());
  EXPECT_EQ(out[0], static_cast<float>((1 << 24) + (1 << 20) - 1));

  Guarded<float> large({2}, 1e19f), total({1}, 0.0f);
  sum_of_squares(stream, large.tensor(), total.tensor());
  EXPECT_FLOAT_EQ(total[0], 2e38f);
}

TEST_F(Elementwise, SumOfSquaresShowsNanAndInf) {
  for (const std::int64_t at : {0, 36, 999}) {
    for (const float bad : {kNaN, kInfinity, -kInfinity}) {
      Random x("x", {1000});
      x[at] = bad;
      Guarded<float> out({1}, 0.0f);
      sum_of_squares(stream, x.tensor(), out.tensor());
      EXPECT_FALSE(std::isfinite(out[0]));
    }
  }
}

TEST_F(Elementwise, NamesTheWrongTensor) {
  Random x("x", {8}), y("y", {9});
  std::vector<std::int32_t> integers(8);
  EXPECT_EQ(error_of([&] { add_to(stream, x.tensor(), y.tensor()); }),
            "add_to: x is float32 [8], expected float32 of 9 elements");
  EXPECT_EQ(error_of([&] { silu_forward(stream, x.tensor(), y.tensor()); }),
            "silu_forward: y is float32 [9], expected float32 of 8 elements");
  EXPECT_EQ(error_of([&] { silu_backward(stream, x.tensor(), y.tensor(), x.tensor()); }),
            "silu_backward: dy is float32 [9], expected float32 of 8 elements");
  EXPECT_EQ(error_of([&] { fill(stream, Tensor::of(integers.data(), {8}), 1.0f); }),
            "fill: x is int32 [8], expected float32 of 8 elements");
  EXPECT_EQ(error_of([&] { sum_of_squares(stream, x.tensor(), y.tensor()); }),
            "sum_of_squares: out is float32 [9], expected float32 [1]");
  EXPECT_EQ(error_of([&] { fill(stream, Tensor(), 1.0f); }), "fill: x is absent, expected float32 of 0 elements");
}

}  // namespace
}  // namespace dm
