// What the kernels of the selective scan share: their view of a recurrence, asynchronous copies to shared memory, fast
// functions.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/scan_layout.h"
#include "kernels/selective_scan.h"

namespace dm::cuda::scan {

inline constexpr int kThreads = 128;

/// What a kernel may rely on. Aligned: rows of activations and columns of projections begin at multiples of 16 bytes, and
/// there is one slice of states. Whole: so they do, and neither a tile of tokens nor a block of channels is cut off.
enum class Fit { any, aligned, whole };

/// Absolute error below 2^-22 near 1, relative below 2^-22 elsewhere.
__device__ inline float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// softplus(x) and sigmoid(x) = softplus'(x), which share an exponential. Relative error below 2e-6: below e = 1/8, where
/// the logarithm's absolute error would count, log1p(e) is e times a polynomial.
struct Softplus {
  float value, slope;

  __device__ explicit Softplus(float x) {
    const float e = exp2_fast(fminf(x, 80.0f) * kLog2e), above = 1.0f + e;
    const float near_zero =
        e * (0.99999999f + e * (-0.49999692f + e * (0.33313400f + e * (-0.24542373f + e * 0.15580920f))));
    const float log = e < 0.125f ? near_zero : log2_fast(above) * kLn2;
    value = x > 20.0f ? x : log;
    slope = e * reciprocal(above);
  }
};

/// 16 or 4 bytes from global to shared memory, zeros instead when not `valid`; `from` must be an address all the same.
__device__ inline void copy16_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ inline void copy4_async(void* to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 4 : 0)
               : "memory");
}
/// Waits for all copies of this thread; a barrier after it shows them to the block.
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

__device__ inline void load2(const float* from, float (&x)[2]) {
  const float2 v = *reinterpret_cast<const float2*>(from);
  x[0] = v.x, x[1] = v.y;
}
__device__ inline void load2(const bf16* from, float (&x)[2]) {
  const std::uint32_t word = *reinterpret_cast<const std::uint32_t*>(from);
  x[0] = __uint_as_float(word << 16), x[1] = __uint_as_float(word & 0xffff0000u);
}
__device__ inline void store2(float* to, const float (&x)[2]) {
  *reinterpret_cast<float2*>(to) = make_float2(x[0], x[1]);
}
__device__ inline void store2(bf16* to, const float (&x)[2]) {
  *reinterpret_cast<__nv_bfloat162*>(to) = __floats2bfloat162_rn(x[0], x[1]);
}
/// Two neighbours, those inside; at once where pairs are aligned, which are all inside or none.
template <bool kAligned, class T>
__device__ void store_pair(T* to, const bool (&inside)[2], const float (&v)[2]) {
  if constexpr (kAligned) {
    if (inside[0]) store2(to, v);
  } else {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if (inside[c]) to[c] = from_float<T>(v[c]);
    }
  }
}
__device__ inline void load4(const float* from, float (&x)[4]) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}
__device__ inline void load4(const bf16* from, float (&x)[4]) {
  const uint2 words = *reinterpret_cast<const uint2*>(from);
  x[0] = __uint_as_float(words.x << 16), x[1] = __uint_as_float(words.x & 0xffff0000u);
  x[2] = __uint_as_float(words.y << 16), x[3] = __uint_as_float(words.y & 0xffff0000u);
}
__device__ inline void store4(float* to, const float (&x)[4]) {
  *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
}
__device__ inline void store4(bf16* to, const float (&x)[4]) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(x[0], x[1]), high = __floats2bfloat162_rn(x[2], x[3]);
  *reinterpret_cast<uint2*>(to) =
      make_uint2(*reinterpret_cast<const std::uint32_t*>(&low), *reinterpret_cast<const std::uint32_t*>(&high));
}

struct Extents {
  int batch, tokens, channels, states, columns, slices, saved;
  int z_stride, dz_stride;  ///< Elements between rows; those of the other activations are `channels` apart.
  bool vector;              ///< Rows of activations begin at multiples of 16 bytes.
  bool vector_columns;      ///< So do the B and C columns of projections.

  __device__ std::int64_t sequence(int b) const { return sequence(b, channels); }
  __device__ std::int64_t sequence(int b, int stride) const { return static_cast<std::int64_t>(b) * tokens * stride; }
  __device__ std::int64_t column_rows(int b) const { return static_cast<std::int64_t>(b) * tokens * columns; }
  /// The first of D·16 saved states.
  __device__ std::int64_t saved_states(int b, int chunk, int slice) const {
    return ((static_cast<std::int64_t>(b) * saved + chunk) * slices + slice) * channels * kStates;
  }
};

/// One layer's recurrence as kernels see it.
template <class T>
struct Recurrence {
  const T* u;
  const T* dt;
  const float* dt_bias;
  const float* A_log;
  const float* dbc;
  const float* initial;
  T* states;
};

template <class T>
Recurrence<T> view(const ScanRecurrence& r) {
  return {pointer<const T>(r.u),
          pointer<const T>(r.dt),
          pointer<const float>(r.dt_bias),
          pointer<const float>(r.A_log),
          pointer<const float>(r.dbc),
          r.initial ? pointer<const float>(r.initial) : nullptr,
          r.chunk_states ? pointer<T>(r.chunk_states) : nullptr};
}

inline Extents extents_of(const ScanRecurrence& own) {
  Extents x{};
  x.batch = static_cast<int>(own.u.size(0)), x.tokens = static_cast<int>(own.u.size(1));
  x.channels = static_cast<int>(own.u.size(2)), x.states = static_cast<int>(own.A_log.size(1));
  x.columns = static_cast<int>(own.dbc.size(2));
  x.slices = static_cast<int>(slices_of(x.states)), x.saved = static_cast<int>(saved_of(x.tokens));
  x.vector = x.channels % kVector == 0;
  x.vector_columns = x.columns % 4 == 0 && x.states % 4 == 0;
  return x;
}
/// Every activation that kernels copy 16 bytes at a time is passed here once.
inline void require_alignment(Extents& x, const Tensor& tensor) {
  x.vector = x.vector && (!tensor || reinterpret_cast<std::uintptr_t>(tensor.data()) % 16 == 0);
}
inline void require_alignment(Extents& x, const Matrix& matrix) {
  require_alignment(x, matrix.tensor);
  x.vector = x.vector && matrix.row_stride % kVector == 0 && matrix.offset % kVector == 0;
}

/// And every projection whose B and C columns they copy so.
inline void require_column_alignment(Extents& x, const Tensor& tensor) {
  x.vector_columns = x.vector_columns && reinterpret_cast<std::uintptr_t>(tensor.data()) % 16 == 0;
}

/// A · log2(e) of one state, zero outside.
template <class T>
__device__ float rate_of(const Recurrence<T>& r, const Extents& x, int channel, int n) {
  if (channel >= x.channels || n >= x.states) return 0.0f;
  return -expf(r.A_log[static_cast<std::int64_t>(channel) * x.states + n]) * kLog2e;
}

/// Calls copy(i) for this thread's share of i in [0, kCount), a number of calls that the compiler knows.
template <int kCount, class Copy>
__device__ inline void share(const Copy& copy) {
#pragma unroll
  for (int round = 0; round < (kCount + kThreads - 1) / kThreads; ++round) {
    const int i = round * kThreads + static_cast<int>(threadIdx.x);
    if (kCount % kThreads == 0 || i < kCount) copy(i);
  }
}

/// kTokens × 64 elements of the activation `from`, rows `stride` apart, from (token, channel) of sequence b, to rows of 64;
/// zeros outside.
template <int kTokens, class T>
__device__ void copy_rows(T* to, const T* from, int stride, const Extents& x, int b, int token, int channel) {
  constexpr int kEach = 16 / static_cast<int>(sizeof(T)), kRow = kChannels / kEach;
  share<kTokens * kRow>([&](int i) {
    const int t = i / kRow, c = i % kRow * kEach;
    const T* row = from + x.sequence(b, stride) + static_cast<std::int64_t>(token + t) * stride + channel;
    const bool inside = token + t < x.tokens;
    if (x.vector) {
      const bool valid = inside && channel + c < x.channels;
      copy16_async(to + t * kChannels + c, valid ? row + c : from, valid);
    } else {
      for (int k = 0; k < kEach; ++k) {
        to[t * kChannels + c + k] = inside && channel + c + k < x.channels ? row[c + k] : from_float<T>(0.0f);
      }
    }
  });
}

/// kTokens × 16 columns of a [T, R+2N] projection of one sequence to rows of 16; zeros outside. `count` columns exist.
template <int kTokens>
__device__ void copy_columns(float* to, const float* from, const Extents& x, int token, int column, int count) {
  share<kTokens * kStates>([&](int i) {
    const int t = i / kStates, n = i % kStates;
    const bool valid = token + t < x.tokens && n < count;
    copy4_async(to + i, valid ? from + static_cast<std::int64_t>(token + t) * x.columns + column + n : from, valid);
  });
}

/// Slices of states of all recurrences of a call.
inline constexpr int kMaxParts = kMaxScanStates / kStates;

/// Launches with `shared` bytes of dynamic shared memory.
template <class Params>
void launch(void (*kernel)(Params), dim3 grid, int threads, std::size_t shared, const NativeStream& native,
            const Params& params) {
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  kernel<<<grid, threads, shared, native.stream>>>(params);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace dm::cuda::scan
