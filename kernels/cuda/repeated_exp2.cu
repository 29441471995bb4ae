// Chains of ex2 on the GPU: four independent ones a thread, so that the units and not their latency are the limit.
#include "kernels/repeated_exp2.h"

#include <algorithm>

#include "kernels/cuda/common.cuh"

namespace dm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChains = 4;

__global__ void __launch_bounds__(kThreads) chains(float* x, std::int64_t n, std::int64_t rounds) {
  const std::int64_t thread = std::int64_t{blockIdx.x} * kThreads + threadIdx.x,
                     threads = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t begin = thread; begin < n; begin += threads * kChains) {
    float value[kChains] = {};
#pragma unroll
    for (int k = 0; k < kChains; ++k) {
      if (begin + k * threads < n) value[k] = x[begin + k * threads];
    }
#pragma unroll 16
    for (std::int64_t round = 0; round < rounds; ++round) {
#pragma unroll
      for (int k = 0; k < kChains; ++k) value[k] = exp2_fast(-value[k]);
    }
#pragma unroll
    for (int k = 0; k < kChains; ++k) {
      if (begin + k * threads < n) x[begin + k * threads] = value[k];
    }
  }
}

}  // namespace

void repeated_exp2(Stream& stream, const Tensor& x, std::int64_t rounds) {
  const NativeStream& native = cuda::native(stream);
  const std::int64_t n = x.numel();
  if (n == 0) return;
  const std::int64_t blocks =
      std::min<std::int64_t>(ceil_div(n, kThreads * kChains), std::int64_t{native.multiprocessors} * 8);
  chains<<<static_cast<unsigned>(blocks), kThreads, 0, native.stream>>>(x.as<float>(), n, rounds);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace dm::cuda
