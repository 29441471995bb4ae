// Small ops on flat data on the GPU: eight elements a thread and turn, a grid-stride loop, the last few one by one.
#include "kernels/cuda/common.cuh"
#include "kernels/elementwise.h"

namespace dm::cuda {
namespace {

constexpr int kThreads = 256;

/// Blocks for n elements, eight a thread, at most eight blocks a multiprocessor.
int blocks_for(const NativeStream& native, std::int64_t n) {
  const std::int64_t wanted = (n + kThreads * kVector - 1) / (kThreads * kVector);
  const std::int64_t most = std::int64_t{native.multiprocessors} * 8;
  return static_cast<int>(wanted < 1 ? 1 : wanted < most ? wanted : most);
}

/// Calls body(i) with i the first of eight elements, and tail(i) for each element after the last eight.
template <class Body, class Tail>
__device__ void for_each_eight(std::int64_t n, const Body& body, const Tail& tail) {
  const std::int64_t thread = std::int64_t{blockIdx.x} * kThreads + threadIdx.x, threads = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = thread * kVector; i + kVector <= n; i += threads * kVector) body(i);
  for (std::int64_t i = n / kVector * kVector + thread; i < n; i += threads) tail(i);
}

/// y[i] = map(x[i]); the vector path where `wide`.
template <class From, class To, class Map>
__global__ void __launch_bounds__(kThreads) map_kernel(const From* x, To* y, std::int64_t n, bool wide, Map map) {
  const auto one = [&](std::int64_t i) { y[i] = from_float<To>(map(to_float(x[i]))); };
  if (!wide) {
    const std::int64_t threads = std::int64_t{gridDim.x} * kThreads;
    for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += threads) one(i);
    return;
  }
  for_each_eight(
      n,
      [&](std::int64_t i) {
        float v[kVector];
        load8(x + i, v);
#pragma unroll
        for (int k = 0; k < kVector; ++k) v[k] = map(v[k]);
        store8(y + i, v);
      },
      one);
}

/// y[i] = map(x[i], y[i] or dy[i]).
template <class T, class Map>
__global__ void __launch_bounds__(kThreads) map2_kernel(const T* a, const T* b, T* y, std::int64_t n, bool wide, Map map) {
  const auto one = [&](std::int64_t i) { y[i] = from_float<T>(map(to_float(a[i]), to_float(b[i]))); };
  if (!wide) {
    const std::int64_t threads = std::int64_t{gridDim.x} * kThreads;
    for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += threads) one(i);
    return;
  }
  for_each_eight(
      n,
      [&](std::int64_t i) {
        float v[kVector], w[kVector];
        load8(a + i, v);
        load8(b + i, w);
#pragma unroll
        for (int k = 0; k < kVector; ++k) v[k] = map(v[k], w[k]);
        store8(y + i, v);
      },
      one);
}

template <class From, class To, class Map>
void launch_map(Stream& stream, const Tensor& x, const Tensor& y, Map map) {
  const NativeStream& native = cuda::native(stream);
  const std::int64_t n = x.numel();
  if (n == 0) return;
  map_kernel<<<blocks_for(native, n), kThreads, 0, native.stream>>>(pointer<const From>(x), pointer<To>(y), n,
                                                                     aligned16(pointer<From>(x), pointer<To>(y)), map);
  CUDA_CHECK(cudaGetLastError());
}

template <class T, class Map>
void launch_map2(Stream& stream, const Tensor& a, const Tensor& b, const Tensor& y, Map map) {
  const NativeStream& native = cuda::native(stream);
  const std::int64_t n = y.numel();
  if (n == 0) return;
  map2_kernel<<<blocks_for(native, n), kThreads, 0, native.stream>>>(
      pointer<const T>(a), pointer<const T>(b), pointer<T>(y), n, aligned16(pointer<T>(a), pointer<T>(b), pointer<T>(y)), map);
  CUDA_CHECK(cudaGetLastError());
}

struct Identity {
  __device__ float operator()(float x) const { return x; }
};
struct Silu {
  __device__ float operator()(float x) const { return silu(x); }
};
struct SiluBackward {
  __device__ float operator()(float x, float dy) const { return dy * silu_derivative(x); }
};
struct Add {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Constant {
  float value;
  __device__ float operator()(float) const { return value; }
};

/// Blocks of the reductions below: a constant, so that the order of the sum is that of the data alone.
constexpr int kReductionBlocks = 512;

/// partials[block] = Σ map(x) over the block's elements, each thread in its own order, in double.
template <class Map>
__global__ void __launch_bounds__(kThreads) reduce_kernel(const float* x, std::int64_t n, double* partials, Map map) {
  __shared__ double sums[32];
  double sum = 0;
  const std::int64_t threads = std::int64_t{kReductionBlocks} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += threads) sum += map(x[i]);
  sum = block_sum(sum, sums);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

/// out[0] += Σ partials, in block order within each thread and then by the same tree every time.
__global__ void __launch_bounds__(kThreads) finish_reduction(const double* partials, float* out) {
  __shared__ double sums[32];
  double sum = 0;
  for (int block = threadIdx.x; block < kReductionBlocks; block += kThreads) sum += partials[block];
  sum = block_sum(sum, sums);
  if (threadIdx.x == 0) *out = static_cast<float>(static_cast<double>(*out) + sum);
}

template <class Map>
void launch_reduction(Stream& stream, const Tensor& x, const Tensor& out, Map map) {
  const NativeStream& native = cuda::native(stream);
  auto* partials = static_cast<double*>(native.workspace);
  reduce_kernel<<<kReductionBlocks, kThreads, 0, native.stream>>>(x.as<float>(), x.numel(), partials, map);
  CUDA_CHECK(cudaGetLastError());
  finish_reduction<<<1, kThreads, 0, native.stream>>>(partials, out.as<float>());
  CUDA_CHECK(cudaGetLastError());
}

struct SquareInDouble {
  __device__ double operator()(float x) const { return static_cast<double>(x * x); }
};
struct Widen {
  __device__ double operator()(float x) const { return static_cast<double>(x); }
};

}  // namespace

void fill(Stream& stream, const Tensor& x, float value) {
  if (value == 0.0f) {
    CUDA_CHECK(cudaMemsetAsync(x.data(), 0, static_cast<std::size_t>(x.bytes()), cuda::native(stream).stream));
    return;
  }
  launch_map<float, float>(stream, x, x, Constant{value});
}

void add_to(Stream& stream, const Tensor& x, const Tensor& y) { launch_map2<float>(stream, x, y, y, Add{}); }

void convert(Stream& stream, const Tensor& x, const Tensor& y) {
  if (x.dtype() == DType::f32) {
    launch_map<float, bf16>(stream, x, y, Identity{});
  } else {
    launch_map<bf16, float>(stream, x, y, Identity{});
  }
}

void silu_forward(Stream& stream, const Tensor& x, const Tensor& y) {
  with_compute_type(x.dtype(), [&](auto element) {
    using T = decltype(element);
    launch_map<T, T>(stream, x, y, Silu{});
  });
}

void silu_backward(Stream& stream, const Tensor& x, const Tensor& dy, const Tensor& dx) {
  with_compute_type(x.dtype(), [&](auto element) { launch_map2<decltype(element)>(stream, x, dy, dx, SiluBackward{}); });
}

void sum_of_squares(Stream& stream, const Tensor& x, const Tensor& out) { launch_reduction(stream, x, out, SquareInDouble{}); }

}  // namespace dm::cuda
