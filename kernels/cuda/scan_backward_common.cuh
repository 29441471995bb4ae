// What the scan's backward kernels share: their tile, how a warp's lanes divide 16 channels and 16 states, sums over lanes.
#pragma once

#include "kernels/cuda/scan_common.cuh"

namespace dm::cuda::scan::backward {

inline constexpr int kTile = kSavedTokens;
/// Channels that a warp walks at a time.
inline constexpr int kWarpChannels = 16;
/// Shared memory of a block.
inline constexpr std::size_t kMaxShared = 227 * 1024;

/// This thread's copies since the last call become a group that wait_for_groups() waits for, with all earlier ones.
__device__ inline void end_group() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
__device__ inline void wait_for_groups() {
  asm volatile("cp.async.wait_group 0;" ::: "memory");
}

/// x in a register of its own: the compiler, which would rather compute it anew in each tile, does not see through this.
__device__ inline int kept(int x) {
  return __shfl_sync(0xffffffffu, x, static_cast<int>(threadIdx.x % 32));
}

/// With lane = 4·pair + quad: which of a tile's elements a lane owns. In steps channels 2·pair and 2·pair + 1 with states
/// 4·quad to 4·quad + 3, elementwise these channels of tokens 2·quad and 2·quad + 1: so do tensor cores hold their products.
struct Lane {
  int warp, pair, quad;

  __device__ Lane() : warp(threadIdx.x / 32), pair(threadIdx.x % 32 / 4), quad(threadIdx.x % 4) {}
  /// In registers, where those are enough.
  static __device__ Lane in_registers() {
    Lane lane;
    lane.warp = kept(lane.warp), lane.pair = kept(lane.pair), lane.quad = kept(lane.quad);
    return lane;
  }
  __device__ int state() const { return 4 * quad; }
  /// Of the block's 64, where each warp has its own.
  __device__ int channel() const { return warp * kWarpChannels + 2 * pair; }
};

/// Copies of eight tokens × 64 channels of an activation, 16 bytes a thread, and of a warp's 16 channels.
template <class T>
struct RowCopy {
  static constexpr int kEach = 16 / static_cast<int>(sizeof(T)), kCopies = kTile * kChannels / kEach;
  static constexpr int kRow = kWarpChannels / kEach, kWarpCopies = kTile * kRow;
};

/// Where a thread's share of 16 bytes of each tile comes from and goes to, so that no address is computed anew. The main
/// kernel keeps them in shared memory: its steps have better use for registers.
struct alignas(16) Cursor {
  const unsigned char* from;  ///< Of the first tile.
  unsigned to;                ///< Shared memory, of even tiles.
  int tiles;                  ///< Those from here on are outside.

  static __device__ Cursor load(const Cursor& from) {
    const int4 words = *reinterpret_cast<const int4*>(&from);
    return reinterpret_cast<const Cursor&>(words);
  }
  /// Sizes are bytes: from one tile to the next, and from one buffer to the next. Nothing but zeros for tiles before
  /// `begin`; nothing at all when not `on`, by a predicate, since a branch would part the steps around it.
  template <Fit kFit = Fit::aligned>
  __device__ void copy(int tile, int begin, int stride, int buffer, int size, bool on = true) const {
    asm volatile(
        "{.reg .pred p; setp.ne.s32 p, %3, 0; @p cp.async.cg.shared.global [%0], [%1], 16, %2;}" ::"r"(to + buffer * size),
        "l"(from + static_cast<std::int64_t>(tile) * stride),
        "r"(tile >= begin && (kFit == Fit::whole || tile < tiles) ? 16 : 0), "r"(static_cast<int>(on))
        : "memory");
  }
};
/// Sums of two tokens on their way through device memory. In bfloat16 a word, 12 bits each over the exponent of the larger
/// one: errors are 2^-11 of that at most. Zero below 2^-111; both NaN where one is not finite.
template <class T>
using TokenPair = std::conditional_t<std::is_same_v<T, float>, float2, unsigned>;

__device__ inline void pack_pair(float2 v, float2& to) {
  to = v;
}
__device__ inline void pack_pair(float2 v, unsigned& to) {
  constexpr unsigned kExponent = 0xffu << 23, kHalf = 1u << 12;  // what rounds up from 11 bits has the next exponent
  const unsigned larger = max(__float_as_uint(v.x) & 0x7fffffffu, __float_as_uint(v.y) & 0x7fffffffu);
  const unsigned exponent = max(min(larger + kHalf, kExponent) & kExponent, 27u << 23);
  const float scale = __uint_as_float((264u << 23) - exponent);  // to below 2^11
  const unsigned x = __float_as_uint(fmaf(v.x, scale, kToWhole)), y = __float_as_uint(fmaf(v.y, scale, kToWhole));
  to = (exponent << 1) | (y & 0xfffu) << 12 | (x & 0xfffu);
}
__device__ inline float2 unpack_pair(float2 pair) {
  return pair;
}
__device__ inline float2 unpack_pair(unsigned word) {
  const unsigned exponent = word >> 24;
  const float last = __uint_as_float(exponent == 255 ? 0x7fffffffu : (exponent - 10) << 23);
  return make_float2(static_cast<float>(static_cast<int>(word << 20) >> 20) * last,
                     static_cast<float>(static_cast<int>(word << 8) >> 20) * last);
}
__device__ inline float exchange(float x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
/// One level of a scattering sum over lanes that differ in the bit `mask`: lower ones get `first`, upper ones `second`.
__device__ inline float scatter_sum(float first, float second, bool upper, int mask) {
  return (upper ? second : first) + exchange(upper ? first : second, mask);
}

}  // namespace dm::cuda::scan::backward
