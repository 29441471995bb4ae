// Steps of the selective scan forward: a warp's states through a tile, exponentials ahead of them.
#pragma once

#include "kernels/cuda/scan_forward_tile.cuh"

namespace dm::cuda::scan::forward {

/// exp(ΔA) of one token, [channel][state].
using Decay = float[2][4];

/// `delta` of a quad, `i` of its tokens; `zero` is added to the exponents.
__device__ inline void find_decay(const float (&delta)[2][4], const float (&rate)[2][4], int i, float zero, Decay& decay) {
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const float step = delta[i / 2][i % 2 * 2 + c];
#pragma unroll
    for (int s = 0; s < 4; ++s) decay[c][s] = exp2_fast(fmaf(step, rate[c][s], zero));
  }
}
__device__ inline void load_delta(const Drive& drive, int quad, const Lane& lane, float (&delta)[2][4]) {
#pragma unroll
  for (int k = 0; k < 2; ++k) load4(reinterpret_cast<const float*>(&drive.delta[Drive::at(quad, k, lane)]), delta[k]);
}

/// Steps of this lane's states, quad by quad. The exponentials of a step are asked for between the state's update two steps
/// and one step before it: left alone, the compiler asks for many at once, and their unit idles before and after. What ties
/// them is a zero that it cannot know to be one.
struct Walk {
  static constexpr int kLead = 2;
  float delta[2][4];  ///< of the quad whose exponentials are asked for
  Decay decay[kLead];
  std::uint32_t no_bits;  ///< 0, but not to the compiler

  __device__ void begin(const Drive& drive, const Lane& lane, const float (&rate)[2][4]) {
    load_delta(drive, 0, lane, delta);
#pragma unroll
    for (int i = 0; i < kLead; ++i) find_decay(delta, rate, i, 0.0f, decay[i]);
  }
  /// Quad `quad`; `after(i, h)` sees the states after each step. Without kMore, it is the last of the tile.
  template <bool kMore, class After>
  __device__ void advance(const Drive& drive, const InputColumns& columns, int quad, const Lane& lane,
                          const float (&rate)[2][4], float (&h)[2][4], const After& after) {
    float input[2][4], B[2][4];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      load4(reinterpret_cast<const float*>(&drive.input[lane.quad / 2][Drive::at(quad, k, lane)]), input[k]);
      const int column = k * InputColumns::kProduct + lane.quad % 2 * InputColumns::kPiece + lane.pair;
      load4(reinterpret_cast<const float*>(&columns.at[quad][column]), B[k]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float added[2][4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        product_k4(added[j], input[i / 2][i % 2 * 2], input[i / 2][i % 2 * 2 + 1], B[j][i]);
      }
      Decay& now = decay[i % kLead];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int s = 0; s < 4; ++s) h[c][s] = now[c][s] * h[c][s] + added[s / 2][2 * c + s % 2];
      }
      if (kMore && i + kLead == 4) load_delta(drive, quad + 1, lane, delta);
      if (kMore || i + kLead < 4) {
        const float zero = __uint_as_float(__float_as_uint(h[0][0]) & no_bits);
        find_decay(delta, rate, (i + kLead) % 4, zero, now);
      }
      after(i, h);
    }
  }
};

}  // namespace dm::cuda::scan::forward
