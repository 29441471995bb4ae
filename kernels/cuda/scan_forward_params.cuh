// What the forward kernels of the selective scan read and write, by a lane's two channels and four states.
#pragma once

#include "kernels/cuda/scan_forward_walk.cuh"
#include "kernels/cuda/scan_segments.cuh"

namespace dm::cuda::scan::forward {

/// Recurrences that fit into registers: the layer's own and two sources. More, or more than 16 states, take the sliced
/// kernel.
inline constexpr int kMaxFastSources = 2;

template <class T>
struct ForwardParams {
  Extents x;
  Recurrence<T> recurrence[kMaxParts];  ///< The layer's own, then its sources.
  int recurrences;
  const T* gate;
  const float* skip;
  const T* z;
  T* out;
  float* final_state;
  int tiles_a_segment;
  std::uint32_t no_bits;  ///< 0: what the compiler cannot know (Walk).
  Segments
      segments[1 + kMaxFastSources];  ///< Of each recurrence; what enters them replaces `initial` when there are several.
};

/// A vector of a block's first two channels that this lane owns; zero outside.
__device__ inline void load_channels(const float* from, const Extents& x, int channel, float (&values)[2]) {
#pragma unroll
  for (int c = 0; c < 2; ++c) values[c] = channel + c < x.channels ? from[channel + c] : 0.0f;
}

template <class T>
__device__ void load_rates(const Recurrence<T>& r, const Extents& x, int channel, int first_state, float (&rate)[2][4]) {
#pragma unroll
  for (int c = 0; c < 2; ++c) {
#pragma unroll
    for (int s = 0; s < 4; ++s) rate[c][s] = rate_of(r, x, channel + c, first_state + s);
  }
}

/// The start of a recurrence; zero where there is none.
template <class T>
__device__ void load_start(const ForwardParams<T>& p, int r, int channel, int first_state, float (&h)[2][4]) {
  const Extents& x = p.x;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
#pragma unroll
    for (int s = 0; s < 4; ++s) h[c][s] = 0.0f;
    if (channel + c >= x.channels) continue;
    if (p.segments[0].count > 1) {
      const Segments& segments = p.segments[r];
      load4(segments.states + segments.state_row(x, blockIdx.y, blockIdx.z, 0, channel + c) + first_state, h[c]);
    } else if (p.recurrence[r].initial) {
      const float* row = p.recurrence[r].initial + (std::int64_t{blockIdx.y} * x.channels + channel + c) * x.states;
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        if (first_state + s < x.states) h[c][s] = row[first_state + s];
      }
    }
  }
}

/// Four neighbours at a multiple of their size, when `on`: by a predicate, since a branch would part the steps around it.
__device__ inline void store4_if(bool on, float* to, const float (&v)[4]) {
  asm volatile("{.reg .pred p; setp.ne.s32 p, %5, 0; @p st.global.v4.f32 [%0], {%1,%2,%3,%4};}" ::"l"(to), "f"(v[0]),
               "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(static_cast<int>(on))
               : "memory");
}
__device__ inline void store4_if(bool on, bf16* to, const float (&v)[4]) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(v[0], v[1]), high = __floats2bfloat162_rn(v[2], v[3]);
  asm volatile("{.reg .pred p; setp.ne.s32 p, %3, 0; @p st.global.v2.b32 [%0], {%1,%2};}" ::"l"(to),
               "r"(*reinterpret_cast<const std::uint32_t*>(&low)), "r"(*reinterpret_cast<const std::uint32_t*>(&high)),
               "r"(static_cast<int>(on))
               : "memory");
}

__device__ inline void store2_if(bool on, float* to, const float (&v)[2]) {
  asm volatile("{.reg .pred p; setp.ne.s32 p, %3, 0; @p st.global.v2.f32 [%0], {%1,%2};}" ::"l"(to), "f"(v[0]), "f"(v[1]),
               "r"(static_cast<int>(on))
               : "memory");
}
__device__ inline void store2_if(bool on, bf16* to, const float (&v)[2]) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(v[0], v[1]);
  asm volatile("{.reg .pred p; setp.ne.s32 p, %2, 0; @p st.global.b32 [%0], %1;}" ::"l"(to),
               "r"(*reinterpret_cast<const std::uint32_t*>(&both)), "r"(static_cast<int>(on))
               : "memory");
}

/// Where this lane saves the layer's own states before each chunk from `token` on; null when they are not saved.
template <class T>
__device__ T* saved_states(const ForwardParams<T>& p, int token, int slice, int channel, const Lane& lane) {
  if (!p.recurrence[0].states || channel >= p.x.channels) return nullptr;
  return p.recurrence[0].states + p.x.saved_states(blockIdx.y, token / kSavedTokens, slice) +
         static_cast<std::int64_t>(channel) * kStates + lane.first_state;
}
template <class T>
__device__ void save_states(bool first, bool second, T* to, const float (&h)[2][4]) {
  store4_if(first, to, h[0]);
  store4_if(second, to + kStates, h[1]);
}

template <class T>
__device__ void store_final(const ForwardParams<T>& p, int channel, int first_state, const float (&h)[2][4]) {
  const Extents& x = p.x;
  if (!p.final_state) return;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    if (channel + c >= x.channels) continue;
    float* row = p.final_state + (std::int64_t{blockIdx.y} * x.channels + channel + c) * x.states;
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      if (first_state + s < x.states) row[first_state + s] = h[c][s];
    }
  }
}

/// out = (e + silu(gate) ⊙ r + skip ⊙ u) ⊙ silu(z) for two tokens of the eight from row `begin` of a tile: what is known
/// before the readout is.
template <bool kGated>
struct Output {
  float base[2][2], scale[2][2], gate[2][2];

  template <class T>
  __device__ Output(const Rows<T>& u, const Rows<T>& z, const Rows<T>* gates, const float (&skip)[2], int begin,
                    const MakerLane<T>& lane) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      load2(lane.of_group(u, begin, i), base[i]);
      load2(lane.of_group(z, begin, i), scale[i]);
      silu_pair(scale[i]);
      if constexpr (kGated) {
        load2(lane.of_group(*gates, begin, i), gate[i]);
        silu_pair(gate[i]);
      }
#pragma unroll
      for (int k = 0; k < 2; ++k) base[i][k] *= skip[k];
    }
  }
  /// To `to` and a row behind it, of `tokens` of the tile; e and r are sums of products of tensor cores.
  template <Fit kFit, class T>
  __device__ void store(T* to, const Extents& x, int begin, int tokens, int channel, const Lane& lane,
                        const float (&e)[2][2], const float (&r)[2][2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float y[2];
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        y[k] = e[i][k];
        if constexpr (kGated) y[k] += gate[i][k] * r[i][k];
        y[k] = (std::is_same_v<T, float> ? y[k] + base[i][k] : fmaf(y[k], kDropped, base[i][k])) * scale[i][k];
      }
      T* const row = to + static_cast<std::int64_t>(i) * x.channels;
      const bool inside = kFit == Fit::whole || (begin + 2 * lane.quad + i < tokens && channel < x.channels);
      store_pair<(kFit != Fit::any)>(row, {inside, inside && channel + 1 < x.channels}, y);
    }
  }
};

}  // namespace dm::cuda::scan::forward
