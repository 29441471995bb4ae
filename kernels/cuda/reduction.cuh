// Sums in an order that the sizes alone decide: of a whole tensor into one number, and of rows of partial sums into one row.
#pragma once

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

/// Rows of partial sums that a column's sum is cut into: one a warp of the block.
inline constexpr int kRowParts = 32;

/// Column sums of rows [count, width], each added to its element of first (columns below `split`) or second (the others,
/// from its start). A warp's lanes own neighbouring columns, 32 warps every 32nd row each: the rows lie in the second-level
/// cache, and what counts is how few of its latencies follow one another. Then warp 0 adds the 32 parts in order.
template <class Sum>
__global__ void __launch_bounds__(kRowParts * 32)
    add_rows_kernel(const Sum* __restrict__ rows, int count, int width, Sum* __restrict__ first, int split,
                    Sum* __restrict__ second) {
  __shared__ Sum sums[kRowParts][32];
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
  Sum sum = 0;
  if (column < width) {
#pragma unroll 8
    for (int row = part; row < count; row += kRowParts) sum += rows[std::int64_t{row} * width + column];
  }
  sums[part][lane] = sum;
  __syncthreads();
  if (part != 0 || column >= width) return;
#pragma unroll
  for (int other = 1; other < kRowParts; ++other) sum += sums[other][lane];
  Sum& to = column < split ? first[column] : second[column - split];
  to += sum;
}

/// first[0 … split) and second[0 … width − split) += the column sums of rows [count, width].
inline void add_rows(const NativeStream& native, const float* rows, int count, int width, float* first, int split,
                     float* second) {
  add_rows_kernel<<<ceil_div(width, 32), kRowParts * 32, 0, native.stream>>>(rows, count, width, first, split, second);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace dm::cuda
