// How the scan's backward kernels share states and channels among the lanes of a warp, and sum over them.
//
// A thread owns two channels and four states of each: four lanes share a channel, eight lanes of a warp share a state. Sums
// over lanes scatter as they go: at each level a lane keeps half of its values and sends the other half to the lane that
// keeps those. Which half is decided by where values lie, not by selects: lane bits permute a thread's states (and swap its
// two channels), so that the kept ones always are in the same registers. B and C lie in shared memory in all four orders of
// states.
#pragma once

#include "kernels/cuda/scan_common.cuh"

namespace dm::cuda::scan::backward {

inline constexpr int kTile = kSavedTokens;
inline constexpr int kOrders = 4;  ///< Of a thread's four states.
inline constexpr int kWarps = kThreads / 32;
/// Rows of sums that two halves of a warp write: half of the banks apart.
inline constexpr int kSumRow = kChannels + 16;
/// Shared memory of a block.
inline constexpr std::size_t kMaxShared = 227 * 1024;

/// What a thread owns: in register c the channel local[c] of the block, in register j the state first_state + (j ^ order) of
/// the slice.
struct Lane {
  int warp, lane, group, order, first_state;
  int local[2];

  __device__ Lane() {
    warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    group = lane % 4;            // lane bits 0, 1: which four states
    order = lane / 4 % kOrders;  // lane bits 2, 3: their order
    first_state = group * 4;
    const int pair = warp * 16 + lane / 4 * 2;
    local[0] = pair + group % 2, local[1] = pair + 1 - group % 2;
  }
  __device__ int state(int j) const { return first_state + (j ^ order); }
  __device__ bool upper_group() const { return (lane & 2) != 0; }
  __device__ bool upper_half() const { return (lane & 16) != 0; }
};

__device__ inline float exchange(float x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

/// Four states' values over the four orders' lanes: the sum of state(0) over channels pairs whose lanes differ in bits 2
/// and 3.
__device__ inline float sum_states(const float (&v)[4]) {
  const float even = v[0] + exchange(v[1], 4), odd = v[2] + exchange(v[3], 4);
  return even + exchange(odd, 8);
}

/// The four states of this thread in its order.
template <class T>
__device__ void load_states(const T* from, const Lane& lane, float (&h)[4]) {
  float v[4];
  load4(from + lane.first_state, v);
  const bool swap1 = lane.order & 1, swap2 = lane.order & 2;
  const float a = swap1 ? v[1] : v[0], b = swap1 ? v[0] : v[1], c = swap1 ? v[3] : v[2], d = swap1 ? v[2] : v[3];
  h[0] = swap2 ? c : a, h[1] = swap2 ? d : b, h[2] = swap2 ? a : c, h[3] = swap2 ? b : d;
}

using Orders = float[kOrders][kStates];

/// 16 columns of a [T, R+2N] projection for eight tokens, each in the four orders: row t of `to`, order o, place n holds n ^
/// o.
__device__ inline void copy_orders(float* to, int stride, const float* from, const Extents& x, int token, int column,
                                   int count, int thread) {
  const int n = thread % kStates, order = thread / kStates;
  const float* first = from + static_cast<std::int64_t>(token) * x.columns + column + n;
#pragma unroll
  for (int t = 0; t < kTile; ++t) {
    const bool valid = token + t < x.tokens && n < count;
    copy4_async(to + t * stride + order * kStates + (n ^ order), valid ? first + t * x.columns : from, valid);
  }
}

/// 64 channels' saved states of one chunk and slice.
template <class T>
__device__ void copy_states(T* to, const T* from, const Extents& x, int channel) {
  constexpr int kEach = 16 / static_cast<int>(sizeof(T));
  share<kChannels * kStates / kEach>([&](int copy) {
    const int i = copy * kEach;
    const bool valid = channel + i / kStates < x.channels;
    copy16_async(to + i, valid ? from + static_cast<std::int64_t>(channel) * kStates + i : from, valid);
  });
}

}  // namespace dm::cuda::scan::backward
