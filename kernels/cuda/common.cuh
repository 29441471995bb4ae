// Shared by the CUDA ops: eight elements a thread as 16-byte accesses, reductions in a fixed order, activations in float32.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/matrix.h"
#include "runtime/cuda/native_stream.h"
#include "runtime/tensor.h"

namespace dm::cuda {

using bf16 = __nv_bfloat16;

/// Elements that a thread moves at once: 16 bytes of bf16, 32 of float.
inline constexpr int kVector = 8;

/// The tensor's elements as the type kernels compute on.
template <class T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data());
}

template <class T>
T* pointer(const Matrix& matrix) {
  return pointer<T>(matrix.tensor) + matrix.offset;
}

/// Calls work(T{}) with T the element type of a compute dtype.
template <class Work>
void with_compute_type(DType dtype, const Work& work) {
  if (dtype == DType::f32) {
    work(float{});
  } else {
    require(dtype == DType::bf16, "a CUDA op computes on float32 or bfloat16");
    work(bf16{});
  }
}

/// True when every address is a multiple of kBytes; null is.
template <std::size_t kBytes, class... Elements>
bool aligned(const Elements*... arrays) {
  return ((reinterpret_cast<std::uintptr_t>(arrays) % kBytes == 0) && ...);
}

/// What PTX calls a place in shared memory.
__device__ inline unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

/// Elements before the first at which all arrays may be accessed eight elements at a time; n when there is none.
template <class... Elements>
std::int64_t unaligned_head(std::int64_t n, const Elements*... arrays) {
  for (std::int64_t head = 0; head < kVector && head < n; ++head) {
    if (aligned<16>((arrays + head)...)) return head;
  }
  return n;
}

/// Blocks of `threads` for a grid-stride loop over n elements, eight a thread and turn: at most the `resident` ones that a
/// multiprocessor holds (the second number of the kernel's launch bounds), so that all of them run from the start to the
/// end.
inline int blocks_for_eight(const NativeStream& native, std::int64_t n, int threads, int resident) {
  const std::int64_t wanted = (n + std::int64_t{threads} * kVector - 1) / (std::int64_t{threads} * kVector);
  const std::int64_t most = std::int64_t{native.multiprocessors} * resident;
  return static_cast<int>(wanted < most ? wanted : most);
}

inline int ceil_div(std::int64_t value, std::int64_t unit) {
  return static_cast<int>((value + unit - 1) / unit);
}

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(bf16 x) {
  return __bfloat162float(x);
}
template <class T>
__device__ inline T from_float(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    return __float2bfloat16_rn(x);
  }
}

/// Neighbouring elements as they lie in memory, in whole registers: what a thread holds of loads in flight.
template <class T, int kCount = kVector>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Packed {
  std::uint32_t words[sizeof(T) * kCount / 4];
};
template <int kCount = kVector, class T>
__device__ inline Packed<T, kCount> load_packed(const T* from) {
  return *reinterpret_cast<const Packed<T, kCount>*>(from);
}
template <int kCount>
__device__ inline void unpack(const Packed<float, kCount>& packed, float (&x)[kCount]) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) x[k] = __uint_as_float(packed.words[k]);
}
template <int kCount>
__device__ inline void unpack(const Packed<bf16, kCount>& packed, float (&x)[kCount]) {
#pragma unroll
  for (int k = 0; k < kCount / 2; ++k) {
    x[2 * k] = __uint_as_float(packed.words[k] << 16);
    x[2 * k + 1] = __uint_as_float(packed.words[k] & 0xffff0000u);
  }
}
template <int kCount>
__device__ inline Packed<float, kCount> pack(const float (&x)[kCount], float) {
  Packed<float, kCount> packed;
#pragma unroll
  for (int k = 0; k < kCount; ++k) packed.words[k] = __float_as_uint(x[k]);
  return packed;
}
template <int kCount>
__device__ inline Packed<bf16, kCount> pack(const float (&x)[kCount], bf16) {
  Packed<bf16, kCount> packed;
#pragma unroll
  for (int k = 0; k < kCount / 2; ++k) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(x[2 * k], x[2 * k + 1]);
    packed.words[k] = *reinterpret_cast<const std::uint32_t*>(&pair);
  }
  return packed;
}
template <int kCount, class T>
__device__ inline void store_packed(T* to, const float (&x)[kCount]) {
  *reinterpret_cast<Packed<T, kCount>*>(to) = pack(x, T{});
}

template <class T>
__device__ inline void load8(const T* from, float (&x)[kVector]) {
  unpack(load_packed(from), x);
}
template <class T>
__device__ inline void store8(T* to, const float (&x)[kVector]) {
  store_packed(to, x);
}

/// Calls eight(i) with i the first of eight elements, and one(i) for each of the first `head` and of the last few.
/// Grid-stride.
template <class Eight, class One>
__device__ inline void for_each_eight(std::int64_t n, std::int64_t head, const Eight& eight, const One& one) {
  const std::int64_t thread = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const std::int64_t threads = std::int64_t{gridDim.x} * blockDim.x;
  for (std::int64_t i = thread; i < head; i += threads) one(i);
  for (std::int64_t i = head + thread * kVector; i + kVector <= n; i += threads * kVector) eight(i);
  for (std::int64_t i = n - (n - head) % kVector + thread; i < n; i += threads) one(i);
}

inline constexpr float kLog2e = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;
/// 1.5 · 2^23: a sum of it and a number below 2^22 has the nearest whole number in its last bits.
inline constexpr float kToWhole = 12582912.0f;

/// 2^x, relative error below 2^-22; 0 where the result is denormal.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// 1 / x, relative error below 2^-22; 0 where the result is denormal, infinite where x is.
__device__ inline float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// 1 / (1 + exp(−x)): error below 4e-7 of the result for x ≥ 0, growing by 1.2e-7 of it with each unit of −x.
__device__ inline float sigmoid(float x) {
  return reciprocal(1.0f + exp2_fast(-x * kLog2e));
}
__device__ inline float silu(float x) {
  return x * sigmoid(x);
}
/// d silu / dx = s + x·s·(1 − s) with s = sigmoid(x).
__device__ inline float silu_derivative(float x) {
  const float s = sigmoid(x);
  return s * (1.0f + x * (1.0f - s));
}

template <class T>
__device__ inline T warp_sum(T x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}

/// Sum over the block, on every thread. `shared` holds 32 elements and is free again after the next barrier of the caller;
/// two calls in a row need two arrays or a barrier between them.
template <class T>
__device__ inline T block_sum(T x, T* shared) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  const int warps = (blockDim.x + 31) / 32;
  return warp_sum(threadIdx.x % 32 < warps ? shared[threadIdx.x % 32] : T(0));
}

/// Maximum over the block, on every thread; NaN is passed over. `shared` as in block_sum.
__device__ inline float block_max(float x, float* shared) {
  x = warp_max(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  const int warps = (blockDim.x + 31) / 32;
  return warp_max(threadIdx.x % 32 < warps ? shared[threadIdx.x % 32] : x);
}

}  // namespace dm::cuda
