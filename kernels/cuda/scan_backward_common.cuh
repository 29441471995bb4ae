// What the scan's backward kernels share: their tile, how a warp's lanes divide 16 channels and 16 states, sums over lanes.
#pragma once

#include "kernels/cuda/scan_common.cuh"

namespace dm::cuda::scan::backward {

inline constexpr int kTile = kSavedTokens;
/// Channels that a warp walks at a time.
inline constexpr int kWarpChannels = 16;
/// Shared memory of a block.
inline constexpr std::size_t kMaxShared = 227 * 1024;

/// With lane = 4·pair + quad: which of a tile's elements a lane owns. In steps channels 2·pair and 2·pair + 1 with states
/// 4·quad to 4·quad + 3, elementwise these channels of tokens 2·quad and 2·quad + 1: so do tensor cores hold their products.
struct Lane {
  int warp, pair, quad;

  __device__ Lane() : warp(threadIdx.x / 32), pair(threadIdx.x % 32 / 4), quad(threadIdx.x % 4) {}
  __device__ int state() const { return 4 * quad; }
  /// Of the block's 64, where each warp has its own.
  __device__ int channel() const { return warp * kWarpChannels + 2 * pair; }
};

__device__ inline float exchange(float x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
/// One level of a scattering sum over lanes that differ in the bit `mask`: lower ones get `first`, upper ones `second`.
__device__ inline float scatter_sum(float first, float second, bool upper, int mask) {
  return (upper ? second : first) + exchange(upper ? first : second, mask);
}

}  // namespace dm::cuda::scan::backward
