// How the scan's backward kernels share states and channels among the lanes of a warp, sum over them, and fetch their tiles.
//
// Lane bits 2 and 3 say which four of 16 states a thread owns, the other bits which channels. Sums over states go over lanes
// that differ in bits 2 and 3 and scatter on the way: at each level a lane keeps half of its values and sends the other half
// to the lane that keeps those. Sums over channels go over lanes that differ in bits 0 and 1, which is what a tensor core's
// product with a matrix of zeros and ones adds up.
#pragma once

#include "kernels/cuda/scan_common.cuh"

namespace dm::cuda::scan::backward {

inline constexpr int kTile = kSavedTokens;
/// Shared memory of a block.
inline constexpr std::size_t kMaxShared = 227 * 1024;

/// Which states a thread owns: first_state … first_state + 3 of the slice.
struct Lane {
  int lane, first_state;

  __device__ Lane() : lane(threadIdx.x % 32), first_state(lane / 4 % 4 * 4) {}
  __device__ bool upper4() const { return (lane & 4) != 0; }
  __device__ bool upper8() const { return (lane & 8) != 0; }
};

__device__ inline float exchange(float x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}
/// One level of a scattering sum over lanes that differ in the bit `mask`: lower ones get `first`, upper ones `second`.
__device__ inline float scatter_sum(float first, float second, bool upper, int mask) {
  return (upper ? second : first) + exchange(upper ? first : second, mask);
}

/// Two rows of four values a thread, from each of two calls, summed over the four lanes that differ in bits 0 and 1. A
/// product of 16 × 16 by 16 × 8: the lanes' values are the left factor, its rows the eight groups of lanes, twice; the right
/// one has a one where value j goes to column 4 · call + j.
template <class T>
struct ChannelSums {
  float sum[4] = {};  ///< Of the first row, then of the second: values column(), column() + 1 of call call().

  /// The right factor of a call.
  struct Indicator {
    unsigned low, high;
    __device__ explicit Indicator(int call) {
      const int column = threadIdx.x % 32 / 4, j = column / 4 == call ? column % 4 : -1;
      low = j == 0 ? 0x3f80u : j == 1 ? 0x3f800000u : 0u;
      high = j == 2 ? 0x3f80u : j == 3 ? 0x3f800000u : 0u;
    }
  };
  static __device__ int call() { return threadIdx.x % 4 / 2; }
  static __device__ int column() { return threadIdx.x % 2 * 2; }

  /// Values of bfloat16 computation are rounded to bfloat16; float32 goes in as three bfloat16 that add up to it.
  __device__ void add(const float (&first)[4], const float (&second)[4], const Indicator& to) {
    float v[8] = {first[0], first[1], second[0], second[1], first[2], first[3], second[2], second[3]};
    constexpr int kTerms = std::is_same_v<T, float> ? 3 : 1;
#pragma unroll
    for (int term = 0; term < kTerms; ++term) {
      unsigned packed[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(v[2 * i], v[2 * i + 1]);
        packed[i] = *reinterpret_cast<const unsigned*>(&pair);
        if (term + 1 < kTerms) v[2 * i] -= __low2float(pair), v[2 * i + 1] -= __high2float(pair);
      }
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
          "%3};"
          : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
          : "r"(packed[0]), "r"(packed[1]), "r"(packed[2]), "r"(packed[3]), "r"(to.low), "r"(to.high));
    }
  }
};

/// Copies of eight tokens × 64 channels of activations, 16 bytes a thread by kCopies threads; zeros outside. Only when rows
/// are aligned (Extents::vector).
template <class T>
class RowCopy {
 public:
  static constexpr int kEach = 16 / static_cast<int>(sizeof(T)), kRow = kChannels / kEach, kCopies = kTile * kRow;

  __device__ RowCopy(const Extents& x, int b, int channel) : x_(x), b_(b) {
    const int i = threadIdx.x % kCopies;
    row_ = i / kRow, channel_ = channel + i % kRow * kEach;
    tokens_ = channel_ < x.channels ? x.tokens - row_ : 0;
  }
  /// From rows `stride` apart.
  __device__ void run(T* to, const T* from, int stride, int tile) const {
    copy16_async(to, from + x_.sequence(b_, stride) + static_cast<std::int64_t>(tile * kTile + row_) * stride + channel_,
                 tile * kTile < tokens_);
  }

 private:
  const Extents& x_;
  int b_, row_, channel_, tokens_;
};

/// Copies of 64 channels' saved states of a tile, by all threads of a block of kBlock.
template <class T, int kBlock>
class StateCopy {
 public:
  __device__ StateCopy(const Extents& x, int b, int channel) : x_(x), b_(b), channel_(channel) {}
  __device__ void run(T* to, const T* from, int tile, int slice) const {
    from += x_.saved_states(b_, tile, slice) + channel_ * kStates;
    constexpr int kCopies = kChannels * kStates / kEach;
#pragma unroll
    for (int first = 0; first < kCopies; first += kBlock) {
      const int i = (first + static_cast<int>(threadIdx.x)) * kEach;
      if (kCopies % kBlock != 0 && i >= kChannels * kStates) break;
      copy16_async(to + i, from + i, i < (x_.channels - channel_) * kStates);
    }
  }

 private:
  static constexpr int kEach = 16 / static_cast<int>(sizeof(T));
  const Extents& x_;
  int b_, channel_;
};

/// Copies of 16 columns of a [T, R+2N] projection, of which `count` exist, for eight tokens by a warp.
class ColumnCopy {
 public:
  __device__ ColumnCopy(const Extents& x, int b) : x_(x), b_(b) {}
  __device__ void run(float* to, const float* from, int tile, int count) const {
    const int thread = threadIdx.x % 32, tokens = x_.tokens - tile * kTile;
    from += x_.column_rows(b_) + static_cast<std::int64_t>(tile) * (kTile * x_.columns);
    if (x_.vector_columns) {
      const int t = thread / 4, n = thread % 4 * 4;
      copy16_async(to + thread * 4, from + t * x_.columns + n, t < tokens && n < count);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = thread / kStates + 2 * i, n = thread % kStates;
        copy4_async(to + i * 32 + thread, from + t * x_.columns + n, t < tokens && n < count);
      }
    }
  }

 private:
  const Extents& x_;
  int b_;
};

}  // namespace dm::cuda::scan::backward
