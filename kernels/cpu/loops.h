// How CPU ops write the loops that vector units run: sums with a fixed order, and in-place element-wise loops.
#pragma once

#include <cstdint>

/// Before a loop whose iterations are independent even where its pointers are equal (element i is made from elements i
/// only): without it the compiler keeps a scalar loop for the in-place case.
#if defined(__clang__)
#define DM_ELEMENTWISE _Pragma("clang loop vectorize(assume_safety)")
#else
#define DM_ELEMENTWISE _Pragma("GCC ivdep")
#endif

namespace dm::cpu {

/// Σ_i term(i) for i in [0, n), in `Lanes` interleaved partial sums of type Sum that are added pairwise at the end. The
/// order of additions depends on n alone.
template <class Sum, int Lanes, class Term>
inline Sum lane_sum(std::int64_t n, const Term& term) {
  Sum lanes[Lanes] = {};
  std::int64_t i = 0;
  for (; i + Lanes <= n; i += Lanes) {
    for (int lane = 0; lane < Lanes; ++lane) lanes[lane] += term(i + lane);
  }
  for (int lane = 0; i + lane < n; ++lane) lanes[lane] += term(i + lane);
  for (int half = Lanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

}  // namespace dm::cpu
