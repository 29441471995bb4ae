// Philox against its published vectors, and the streams made from it.
#include "runtime/random.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace dm {
namespace {

using Block = std::array<std::uint32_t, 4>;

// The known-answer file of Random123 (kat_vectors, philox4x32 10).
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr std::uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(philox4x32({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

constexpr std::uint64_t kCount = 200'000;

std::vector<double> draw(const RandomStream& stream, float (RandomStream::*number)(std::uint64_t) const) {
  std::vector<double> values(kCount);
  for (std::uint64_t i = 0; i < kCount; ++i) values[i] = (stream.*number)(i);
  return values;
}

double moment(const std::vector<double>& values, int power) {
  double sum = 0;
  for (const double value : values) sum += std::pow(value, power);
  return sum / static_cast<double>(values.size());
}

/// Mean of neighbours' products: what a stream whose indices are not independent gets wrong.
double neighbour_product(const std::vector<double>& values) {
  double sum = 0;
  for (std::size_t i = 0; i + 1 < values.size(); ++i) sum += values[i] * values[i + 1];
  return sum / static_cast<double>(values.size() - 1);
}

// The bounds below are about five standard errors of each mean over kCount numbers.
TEST(RandomStream, UniformHasItsRangeAndMoments) {
  const std::vector<double> values = draw(RandomStream(1, "uniform"), &RandomStream::uniform);
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  EXPECT_GE(*low, 0.0);
  EXPECT_LT(*low, 1e-4);
  EXPECT_LT(*high, 1.0);
  EXPECT_GT(*high, 1 - 1e-4);
  EXPECT_NEAR(moment(values, 1), 1.0 / 2, 0.0035);
  EXPECT_NEAR(moment(values, 2), 1.0 / 3, 0.0035);
  EXPECT_NEAR(moment(values, 3), 1.0 / 4, 0.0035);
  EXPECT_NEAR(neighbour_product(values), 1.0 / 4, 0.0035);
}

TEST(RandomStream, NormalHasItsMoments) {
  const std::vector<double> values = draw(RandomStream(1, "normal"), &RandomStream::normal);
  EXPECT_NEAR(moment(values, 1), 0, 0.0115);
  EXPECT_NEAR(moment(values, 2), 1, 0.016);
  EXPECT_NEAR(moment(values, 3), 0, 0.045);
  EXPECT_NEAR(moment(values, 4), 3, 0.115);
  EXPECT_NEAR(neighbour_product(values), 0, 0.0115);
  const auto tail = std::count_if(values.begin(), values.end(), [](double value) { return std::abs(value) > 3; });
  EXPECT_NEAR(static_cast<double>(tail) / kCount, 0.0027, 0.0006);
  for (const double value : values) ASSERT_TRUE(std::isfinite(value));
}

TEST(RandomStream, IsAPureFunctionOfSeedNameAndIndex) {
  const RandomStream stream(7, "backbone.embedding.weight");
  const float forward = stream.normal(3);
  (void)stream.normal(1'000'000'000'000);
  EXPECT_EQ(stream.normal(3), forward);
  EXPECT_EQ(RandomStream(7, "backbone.embedding.weight").normal(3), forward);

  std::set<float> first_numbers;
  const std::vector<std::pair<std::uint64_t, std::string>> others = {{7, "a"}, {7, "b"},  {8, "a"}, {7ull << 32, "a"},
                                                                     {7, ""},  {7, "ab"}, {7, "ba"}};
  for (const auto& [seed, name] : others) first_numbers.insert(RandomStream(seed, name).uniform(0));
  EXPECT_EQ(first_numbers.size(), others.size());
}

TEST(RandomStream, IndicesBeyondTheFirst32BitsDiffer) {
  const RandomStream stream(1, "large");
  EXPECT_NE(stream.uniform(5), stream.uniform(5 + (1ull << 32)));
  EXPECT_NE(stream.normal(5), stream.normal(5 + (1ull << 32)));
}

}  // namespace
}  // namespace dm
