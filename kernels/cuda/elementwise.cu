// Small ops on flat data on the GPU: eight elements a thread and turn, a grid-stride loop, unaligned ends one by one.
#include "kernels/elementwise.h"

#include "kernels/cuda/reduction.cuh"

namespace dm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kResident = 6;  // blocks a multiprocessor

/// y[i] = map(x[i]); y may be x.
template <class From, class To, class Map>
__global__ void __launch_bounds__(kThreads, kResident)
    map_kernel(const From* x, To* y, std::int64_t n, std::int64_t head, Map map) {
  for_each_eight(
      n, head,
      [&](std::int64_t i) {
        float v[kVector];
        load8(x + i, v);
#pragma unroll
        for (int k = 0; k < kVector; ++k) v[k] = map(v[k]);
        store8(y + i, v);
      },
      [&](std::int64_t i) { y[i] = from_float<To>(map(to_float(x[i]))); });
}

/// y[i] = map(a[i], b[i]); y may be a or b.
template <class T, class Map>
__global__ void __launch_bounds__(kThreads, kResident)
    map2_kernel(const T* a, const T* b, T* y, std::int64_t n, std::int64_t head, Map map) {
  for_each_eight(
      n, head,
      [&](std::int64_t i) {
        float v[kVector], w[kVector];
        load8(a + i, v);
        load8(b + i, w);
#pragma unroll
        for (int k = 0; k < kVector; ++k) v[k] = map(v[k], w[k]);
        store8(y + i, v);
      },
      [&](std::int64_t i) { y[i] = from_float<T>(map(to_float(a[i]), to_float(b[i]))); });
}

template <class From, class To, class Map>
void launch_map(Stream& stream, const Tensor& x, const Tensor& y, Map map) {
  const NativeStream& native = cuda::native(stream);
  const std::int64_t n = y.numel();
  if (n == 0) return;
  const From* from = pointer<const From>(x);
  To* to = pointer<To>(y);
  map_kernel<<<blocks_for_eight(native, n, kThreads, kResident), kThreads, 0, native.stream>>>(
      from, to, n, unaligned_head(n, from, to), map);
  CUDA_CHECK(cudaGetLastError());
}

template <class T, class Map>
void launch_map2(Stream& stream, const Tensor& a, const Tensor& b, const Tensor& y, Map map) {
  const NativeStream& native = cuda::native(stream);
  const std::int64_t n = y.numel();
  if (n == 0) return;
  const T *first = pointer<const T>(a), *second = pointer<const T>(b);
  T* to = pointer<T>(y);
  map2_kernel<<<blocks_for_eight(native, n, kThreads, kResident), kThreads, 0, native.stream>>>(
      first, second, to, n, unaligned_head(n, first, second, to), map);
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
struct SquareInDouble {
  __device__ double operator()(float x) const { return static_cast<double>(x) * static_cast<double>(x); }
};

}  // namespace

void fill(Stream& stream, const Tensor& x, float value) {
  launch_map<float, float>(stream, x, x, Constant{value});
}

void add_to(Stream& stream, const Tensor& x, const Tensor& y) {
  launch_map2<float>(stream, x, y, y, Add{});
}

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

void sum_of_squares(Stream& stream, const Tensor& x, const Tensor& out) {
  launch_reduction(stream, x, out, SquareInDouble{});
}

}  // namespace dm::cuda
