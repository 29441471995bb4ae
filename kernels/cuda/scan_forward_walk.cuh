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

/// Steps of this lane's states, quad by quad. The exponentials of a step are asked for right after the state's update kLead
/// steps before it: left alone, the compiler asks for many at once, and their unit idles before and after. What ties
/// them is a zero that it cannot know to be one: of the first state that is updated or, kLate, of the last.
template <int kLead, bool kExact, bool kLate = false>
class Walk {
 public:
  /// In the block's shared memory at `shared`, of which `drive` and `columns` are the first that are walked; others are
  /// named by how many bytes they lie behind these. `no_bits` is 0, but not to the compiler.
  __device__ Walk(const void* shared, const Drive<kExact>& drive, const InputColumns<kExact>& columns, const Lane& lane,
                  std::uint32_t no_bits)
      : shared_(static_cast<const unsigned char*>(shared)),
        no_bits_(no_bits),
        delta_place_(place_of(drive.delta[lane.pair])),
        input_place_(place_of(drive.first_term(lane))),
        B_place_(place_of(columns.first_term(lane))) {}

  /// Bytes to an element that this lane reads or writes: hidden from the compiler, which would find them again for every
  /// tile.
  template <class Element>
  __device__ int place_of(const Element& element) const {
    int place = static_cast<int>(reinterpret_cast<const unsigned char*>(&element) - shared_);
    asm("" : "+r"(place));
    return place;
  }
  __device__ const float* at(int place) const { return reinterpret_cast<const float*>(shared_ + place); }

  /// Before the first quad of all, or after one without kMore.
  __device__ void begin(int bytes, int quad, const float (&rate)[2][4]) {
    load_delta(bytes, quad);
#pragma unroll
    for (int i = 0; i < kLead; ++i) find_decay(delta_, rate, i, 0.0f, decay_[i]);
  }
  /// Quad `quad`, `bytes` behind the first ones, its columns `column_bytes`; `after(i, h)` sees the states after each step.
  /// With kMore, exponentials of the next quad are asked for, which is `next_quad` of what lies `next_bytes` behind.
  template <bool kMore, class After>
  __device__ void advance(int bytes, int column_bytes, int quad, int next_bytes, int next_quad, const float (&rate)[2][4],
                          float (&h)[2][4], const After& after) {
    float input[2][4], B[2][4];
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      load4(at(bytes + input_place_) + kFloats * (Drive<kExact>::kStride * quad + 8 * k), input[k]);
      load4(at(column_bytes + B_place_) + kFloats * InputColumns<kExact>::kProduct * (2 * quad + k), B[k]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float added[2][4];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        product_k4(added[j], input[i / 2][i % 2 * 2], input[i / 2][i % 2 * 2 + 1], B[j][i]);
      }
      Decay& now = decay_[i % kLead];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int s = 0; s < 4; ++s) h[c][s] = now[c][s] * h[c][s] + added[s / 2][2 * c + s % 2];
      }
      if (kMore && i + kLead == 4) load_delta(next_bytes, next_quad);
      if (kMore || i + kLead < 4) {
        const float zero = __uint_as_float(__float_as_uint(kLate ? h[1][3] : h[0][0]) & no_bits_);
        find_decay(delta_, rate, (i + kLead) % 4, zero, now);
      }
      after(i, h);
    }
  }

 private:
  static constexpr int kFloats = 4;  ///< Of a vector.

  __device__ void load_delta(int bytes, int quad) {
#pragma unroll
    for (int k = 0; k < 2; ++k)
      load4(at(bytes + delta_place_) + kFloats * (Drive<kExact>::kStride * quad + 8 * k), delta_[k]);
  }

  const unsigned char* const shared_;
  const std::uint32_t no_bits_;
  const int delta_place_, input_place_, B_place_;
  float delta_[2][4];  ///< Of the quad whose exponentials are asked for.
  Decay decay_[kLead];
};

}  // namespace dm::cuda::scan::forward
