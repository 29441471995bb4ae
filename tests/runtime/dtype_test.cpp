// bfloat16 over all of its values, and the table of element types.
#include "runtime/dtype.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include <gtest/gtest.h>

namespace dm {
namespace {

float float_of(std::uint32_t word) {
  return std::bit_cast<float>(word);
}

std::uint16_t rounded(std::uint32_t word) {
  return BFloat16(float_of(word)).bits;
}

BFloat16 with_bits(std::uint32_t bits) {
  BFloat16 value;
  value.bits = static_cast<std::uint16_t>(bits);
  return value;
}

bool is_nan(std::uint32_t bits) {
  return (bits & 0x7fffu) > 0x7f80u;
}

TEST(BFloat16, EveryValueSurvivesTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const auto widened = static_cast<float>(with_bits(bits));
    ASSERT_EQ(std::isnan(widened), is_nan(bits)) << bits;
    const std::uint16_t back = BFloat16(widened).bits;
    // A signalling NaN comes back quiet, with its sign and payload.
    ASSERT_EQ(back, is_nan(bits) ? (bits | 0x40u) : bits);
  }
}

TEST(BFloat16, RoundsToNearestAndTiesToEven) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    if ((bits & 0x7f80u) == 0x7f80u) continue;  // Inf and NaN have no neighbours to round to
    const std::uint32_t word = bits << 16;
    ASSERT_EQ(rounded(word + 0x7fffu), bits) << "below half goes down";
    ASSERT_EQ(rounded(word + 0x8001u), bits + 1) << "above half goes up";
    ASSERT_EQ(rounded(word + 0x8000u), bits + (bits & 1)) << "half goes to even";
  }
}

TEST(BFloat16, OverflowsToInfinityAndKeepsEveryNan) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(static_cast<float>(BFloat16(std::numeric_limits<float>::max())), kInfinity);
  EXPECT_EQ(static_cast<float>(BFloat16(-std::numeric_limits<float>::max())), -kInfinity);
  EXPECT_EQ(static_cast<float>(BFloat16(kInfinity)), kInfinity);
  // The payload may lie in the half that is cut off, where a truncation would leave Inf and a rounding would wrap to zero.
  for (const std::uint32_t word : {0x7f800001u, 0x7fbfffffu, 0x7fc00000u, 0x7fffffffu, 0xff800001u, 0xffffffffu}) {
    EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(float_of(word))))) << std::hex << word;
    EXPECT_EQ(BFloat16(float_of(word)).bits >> 15, word >> 31);
  }
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(size_of(DType::f32), 4);
  EXPECT_EQ(size_of(DType::bf16), 2);
  EXPECT_EQ(size_of(DType::i32), 4);
  EXPECT_EQ(size_of(DType::i64), 8);
  EXPECT_EQ(size_of(DType::u8), 1);
  EXPECT_EQ(name_of(DType::f32), "float32");
  EXPECT_EQ(name_of(DType::bf16), "bfloat16");
  EXPECT_EQ(name_of(DType::i32), "int32");
  EXPECT_EQ(name_of(DType::i64), "int64");
  EXPECT_EQ(name_of(DType::u8), "uint8");
}

}  // namespace
}  // namespace dm
