// Sums in an order that the sizes alone decide: of a whole tensor into one number, and of rows of partial sums into one row.
#pragma once

#include <algorithm>

#include "kernels/cuda/common.cuh"

namespace dm::cuda {

/// Constants, not properties of the device: they are part of the order of the sum.
inline constexpr int kReductionBlocks = 512;
inline constexpr int kReductionThreads = 256;

/// partials[block] = Σ map(x) in double over the block's elements; map(0) is 0. A thread takes four neighbours at a time, as
/// one access where `wide`, four such in flight; the order of the sum is the same either way.
template <class Map>
__global__ void __launch_bounds__(kReductionThreads, 4)
    reduce_kernel(const float* __restrict__ x, std::int64_t n, bool wide, double* __restrict__ partials, Map map) {
  __shared__ double sums[32];
  constexpr int kBatch = 4;
  constexpr std::int64_t kStride = std::int64_t{kReductionBlocks} * kReductionThreads * 4;
  const std::int64_t thread = std::int64_t{blockIdx.x} * kReductionThreads + threadIdx.x;
  double sum = 0;
  for (std::int64_t begin = thread * 4; begin + 4 <= n; begin += kStride * kBatch) {
    float4 fours[kBatch] = {};
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const std::int64_t i = begin + b * kStride;
      if (i + 4 > n) continue;
      if (wide) {
        fours[b] = *reinterpret_cast<const float4*>(x + i);
      } else {
        fours[b] = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const float4 v = fours[b];
      sum += (map(v.x) + map(v.y)) + (map(v.z) + map(v.w));
    }
  }
  if (thread < n % 4) sum += map(x[n - n % 4 + thread]);
  sum = block_sum(sum, sums);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

/// out[0] += Σ partials, rounded once. One block.
template <class Out>
__global__ void __launch_bounds__(kReductionThreads) finish_reduction(const double* partials, Out* out) {
  __shared__ double sums[32];
  double sum = 0;
  for (int block = threadIdx.x; block < kReductionBlocks; block += kReductionThreads) sum += partials[block];
  sum = block_sum(sum, sums);
  if (threadIdx.x == 0) *out = static_cast<Out>(static_cast<double>(*out) + sum);
}

/// out[0] += Σ map(x), map from float to double.
template <class Map>
void launch_reduction(Stream& stream, const Tensor& x, const Tensor& out, Map map) {
  const NativeStream& native = cuda::native(stream);
  auto* partials = static_cast<double*>(native.workspace);
  reduce_kernel<<<kReductionBlocks, kReductionThreads, 0, native.stream>>>(x.as<float>(), x.numel(),
                                                                           aligned<16>(x.as<float>()), partials, map);
  CUDA_CHECK(cudaGetLastError());
  finish_reduction<<<1, kReductionThreads, 0, native.stream>>>(partials, out.as<float>());
  CUDA_CHECK(cudaGetLastError());
}

/// What a warp of add_rows_kernel sums: one sector of each of these rows, a column a lane and four rows at once; more rows
/// where a block has all its warps.
inline constexpr int kSumColumns = 8, kSumRows = 8;
inline constexpr int kSumWarps = 32;  // of a block, at most

/// Column sums of rows [count, width], each added to its element of first (columns below `split`) or second (the others,
/// from its start). A block sums eight columns; its warps share the rows. They lie in the second-level cache, and what
/// counts is how few of its latencies follow one another, and on how many multiprocessors. Parts of a column are added
/// within warps, then warp after warp.
///
/// May be launched before the kernel that writes `rows` has ended: no __restrict__, which makes constants of them.
template <class Sum>
__global__ void __launch_bounds__(kSumWarps * 32)
    add_rows_kernel(const Sum* rows, int count, int width, Sum* first, int split, Sum* second) {
  constexpr int kBatch = 8;  // loads in flight, of the last rows too
  __shared__ Sum sums[kSumWarps][kSumColumns];
  const int lane = threadIdx.x % 32, parts = blockDim.x / kSumColumns,
            column = blockIdx.x * kSumColumns + lane % kSumColumns;
  cudaGridDependencySynchronize();
  Sum sum = 0;
  if (column < width) {
    for (int begin = threadIdx.x / kSumColumns; begin < count; begin += kBatch * parts) {
      Sum batch[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        const int row = begin + b * parts;
        batch[b] = row < count ? rows[std::int64_t{row} * width + column] : Sum(0);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) sum += batch[b];
    }
  }
#pragma unroll
  for (int step = 16; step >= kSumColumns; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (lane < kSumColumns) sums[threadIdx.x / 32][lane] = sum;
  __syncthreads();
  if (threadIdx.x >= kSumColumns || column >= width) return;
  for (int warp = 1; warp < blockDim.x / 32; ++warp) sum += sums[warp][lane];
  Sum& to = column < split ? first[column] : second[column - split];
  to += sum;
}

/// first[0 … split) and second[0 … width − split) += the column sums of rows [count, width], which the stream's last kernel
/// wrote: the launch does not wait for its end, the sums do.
inline void add_rows(const NativeStream& native, const float* rows, int count, int width, float* first, int split,
                     float* second) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(ceil_div(width, kSumColumns)));
  config.blockDim = dim3(static_cast<unsigned>(std::min<int>(ceil_div(count, kSumRows), kSumWarps) * 32));
  config.stream = native.stream, config.attrs = &early, config.numAttrs = 1;
  CUDA_CHECK(cudaLaunchKernelEx(&config, add_rows_kernel<float>, rows, count, width, first, split, second));
}

}  // namespace dm::cuda
