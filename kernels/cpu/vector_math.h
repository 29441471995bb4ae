// Branch-free float32 exponentials and activations, for one float in a loop that the compiler vectorises or for a register.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

namespace dm::cpu {

/// Floats in the widest register that this build targets, and a register of them (a GCC and Clang vector extension:
/// arithmetic, comparison and ?: work lane by lane, as on a float).
#if defined(__AVX512F__)
inline constexpr int kLanes = 16;
#elif defined(__AVX__)
inline constexpr int kLanes = 8;
#else
inline constexpr int kLanes = 4;
#endif
using FloatLanes [[gnu::vector_size(4 * kLanes)]] = float;
using BitLanes [[gnu::vector_size(4 * kLanes)]] = std::uint32_t;

// In all functions `V` is float or FloatLanes. Errors are relative, against the exact value of the float argument, wherever
// that value is a normal float; a NaN argument gives NaN. They rely on neither -ffast-math nor on a fused multiply-add (with
// one they are faster), and on rounding to nearest.
template <class V>
using BitsOf = std::conditional_t<std::is_same_v<V, float>, std::uint32_t, BitLanes>;

inline constexpr float kLog2E = 1.4426950408889634f;

namespace detail {

/// Adding 1.5·2^23 leaves the nearest integer of a small float in the low mantissa bits; subtracting it gives that integer.
inline constexpr float kRound = 12582912.0f;
/// ln 2 in two parts; the first has 10 bits, so that its product with an exponent is exact.
inline constexpr float kLn2High = 0.693359375f;
inline constexpr float kLn2Low = -2.12194440e-4f;

/// 2^f for |f| ≤ 1/2 (minimax, 3e-9), exactly 1 at 0.
template <class V>
[[gnu::always_inline]] inline V exp2_fraction(V f) {
  V p = f * 0x1.417a70p-13f + 0x1.5f0948p-10f;
  p = f * p + 0x1.3b2dd2p-7f;
  p = f * p + 0x1.c6af7ap-5f;
  p = f * p + 0x1.ebfbdcp-3f;
  p = f * p + 0x1.62e430p-1f;
  return f * p + 1.0f;
}

/// −|x|
template <class V>
[[gnu::always_inline]] inline V negative_magnitude(V x) {
  return std::bit_cast<V>(std::bit_cast<BitsOf<V>>(x) | 0x80000000u);
}

}  // namespace detail

/// The larger of `low` and x, the smaller of `high` and x; NaN when x is.
template <class V>
[[gnu::always_inline]] inline V at_least(float low, V x) {
  const V bound = low + V{};
  return x < bound ? bound : x;
}
template <class V>
[[gnu::always_inline]] inline V at_most(float high, V x) {
  const V bound = high + V{};
  return x > bound ? bound : x;
}

/// e^x. Error ≤ 2e-7; above ln(FLT_MAX) infinity, below it shrinks through the subnormals to 0.
template <class V>
[[gnu::always_inline]] inline V exp(V x) {
  const V bounded = at_least(-104.0f, at_most(89.0f, x));
  const V rounded = bounded * kLog2E + detail::kRound;
  const V n = rounded - detail::kRound;
  const V f = ((bounded - n * detail::kLn2High) - n * detail::kLn2Low) * kLog2E;
  // 2^n in two factors, since n = 128 and n < −126 have no float of their own.
  const auto biased = std::bit_cast<BitsOf<V>>(rounded) - std::bit_cast<std::uint32_t>(detail::kRound) + 256u;
  const auto half = biased >> 1;
  const V low = std::bit_cast<V>((half - 1u) << 23);
  const V high = std::bit_cast<V>((biased - half - 1u) << 23);
  return detail::exp2_fraction(f) * low * high;
}

/// 2^x for x ≤ 0, the decay of a scan. Error ≤ 2e-7 (near 1, the distance from 1 has no more than that beside the rounding
/// of the result); between 0 and 2^−126 for x < −126, and 0 from −127 on. A NaN must be one of the processor's own making
/// (low mantissa bits zero) to stay one.
template <class V>
[[gnu::always_inline]] inline V exp2_nonpositive(V x) {
  const V bounded = at_least(-127.0f, x);
  const V rounded = bounded + detail::kRound;
  const V p = detail::exp2_fraction(bounded - (rounded - detail::kRound));
  // Adds n to the exponent bits of p; at n = −127 p is 1 and all bits come out zero.
  return std::bit_cast<V>(std::bit_cast<BitsOf<V>>(p) + (std::bit_cast<BitsOf<V>>(rounded) << 23));
}

/// e^x for x ≤ 0. Error ≤ 2e-7; 0 from −88 on.
template <class V>
[[gnu::always_inline]] inline V exp_nonpositive(V x) {
  const V bounded = at_least(-88.0f, x);
  const V rounded = bounded * kLog2E + detail::kRound;
  const V n = rounded - detail::kRound;
  const V f = ((bounded - n * detail::kLn2High) - n * detail::kLn2Low) * kLog2E;
  // 2^n by its exponent bits; 2^−127 comes out as 0.
  return detail::exp2_fraction(f) * std::bit_cast<V>((std::bit_cast<BitsOf<V>>(rounded) << 23) + 0x3f800000u);
}

/// 1 / (1 + e^−x). Error ≤ 4e-7 on both sides. The same e^−|x| serves all functions from here on: used together on one
/// argument they cost one exponential.
template <class V>
[[gnu::always_inline]] inline V sigmoid(V x) {
  const V small = exp_nonpositive(detail::negative_magnitude(x));
  const V upper = 1.0f / (1.0f + small);
  return x < 0.0f ? small * upper : upper;
}

/// x · sigmoid(x). Error ≤ 5e-7. NaN at −infinity.
template <class V>
[[gnu::always_inline]] inline V silu(V x) {
  return x * sigmoid(x);
}

/// d silu(x) / dx = σ(x) (1 + x σ(−x)). Absolute error ≤ 5e-7.
template <class V>
[[gnu::always_inline]] inline V silu_derivative(V x) {
  const V small = exp_nonpositive(detail::negative_magnitude(x));
  const V upper = 1.0f / (1.0f + small);
  const V lower = small * upper;
  const V sigma = x < 0.0f ? lower : upper;
  const V complement = x < 0.0f ? upper : lower;
  return sigma * (1.0f + x * complement);
}

/// log(1 + e^x). Error ≤ 4e-7, also where the result is tiny.
template <class V>
[[gnu::always_inline]] inline V softplus(V x) {
  // log1p(e) = 2 atanh(s) with s = e / (2 + e) ≤ 1/3.
  const V small = exp_nonpositive(detail::negative_magnitude(x));
  const V s = small / (2.0f + small);
  const V v = s * s;
  V p = v * 0x1.1ec904p-3f + 0x1.1ec070p-3f;
  p = v * p + 0x1.99d1cap-3f;
  p = v * p + 0x1.555502p-2f;
  return at_least(0.0f, x) + (2.0f * s + 2.0f * s * (v * p));
}

}  // namespace dm::cpu
