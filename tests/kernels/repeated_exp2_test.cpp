// The repeated exponential counts its rounds and finds its fixed point.
#include "kernels/repeated_exp2.h"

#include <cmath>

#include <gtest/gtest.h>

#include "tests/kernels/oracle.h"

namespace dm {
namespace {

TEST(RepeatedExp2, CountsItsRounds) {
  Stream stream(Device::cpu());
  for (const std::int64_t rounds : {0, 1, 2, 5}) {
    oracle::Random x("x", {7});
    std::vector<double> expected = x.as_double();
    for (double& value : expected) {
      for (std::int64_t round = 0; round < rounds; ++round) value = std::exp2(-value);
    }
    repeated_exp2(stream, x.tensor(), rounds);
    EXPECT_CLOSE(x, expected, 1e-6) << rounds;
  }
  oracle::Random x("x", {3});
  repeated_exp2(stream, x.tensor(), 100);
  for (const float value : x.values()) EXPECT_NEAR(value, 0.6412, 1e-4);
}

}  // namespace
}  // namespace dm
