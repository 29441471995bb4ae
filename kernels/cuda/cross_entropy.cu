// Cross-entropy on the GPU: a block a row; stats read the row once, finish reads and writes it once.
//
// A thread takes 64 bytes of logits a turn, all loaded before the first is used. Stats keep a running maximum and
// a sum scaled to it, one rescaling a vector; about 8 instructions and 1.1 ex2 a logit, so memory stays the limit (18
// instructions and 2.5 ex2 a bf16 logit fit into the time of its read). Rows that are no multiple of eight wide, or
// unaligned, go one logit a time.
#include "kernels/cross_entropy.h"

#include <cmath>

#include "kernels/cuda/common.cuh"

namespace dm::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kResident = 3;  // blocks a multiprocessor
/// Vectors that a thread has in flight: 64 bytes.
template <class T>
constexpr int kBatch = 8 / static_cast<int>(sizeof(T));

/// exp(x) for x ≤ 0 by ex2: error below 3e-7 of the result, growing by 1e-7 of it with each unit of −x.
__device__ inline float exp_fast(float x) {
  return exp2_fast(x * kLog2e);
}

/// Calls eight(i, vector) for the vectors of [0, n) and one(i) for the logits after the last whole one, over the block.
template <bool kWide, class T, class Eight, class One>
__device__ inline void for_each_logit(const T* row, std::int64_t n, const Eight& eight, const One& one) {
  std::int64_t rest = 0;
  if constexpr (kWide) {
    rest = n / kVector * kVector;
    for (std::int64_t begin = std::int64_t{threadIdx.x} * kVector; begin < rest; begin += kThreads * kBatch<T> * kVector) {
      Packed<T> vectors[kBatch<T>];
#pragma unroll
      for (int b = 0; b < kBatch<T>; ++b) {
        const std::int64_t i = begin + b * kThreads * kVector;
        if (i < rest) vectors[b] = load_packed(row + i);
      }
#pragma unroll
      for (int b = 0; b < kBatch<T>; ++b) {
        const std::int64_t i = begin + b * kThreads * kVector;
        if (i < rest) eight(i, vectors[b]);
      }
    }
  }
  for (std::int64_t i = rest + threadIdx.x; i < n; i += kThreads) one(i);
}

/// The maximum so far, and Σ exp(x − maximum). An infinite or NaN logit makes the sum NaN.
struct Running {
  float largest = -INFINITY;
  float sum = 0;

  /// Moves the sum to a new maximum. Before the first logit largest is −inf and the sum 0, which stays 0.
  __device__ void raise(float to) {
    sum *= exp_fast(largest - to);
    largest = to;
  }
  template <int kCount>
  __device__ void take(const float (&x)[kCount]) {
    float peak = largest, poison = 0;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      peak = fmaxf(peak, x[k]);
      poison = fmaf(x[k], 0.0f, poison);
    }
    if (peak > largest) raise(peak);
#pragma unroll
    for (int k = 0; k < kCount; ++k) sum += exp_fast(x[k] - largest);
    sum += poison;
  }
};

/// Column of the row's target in this shard, or −1.
__device__ inline std::int64_t local_column(const std::int32_t* targets, std::int64_t row, VocabularyShard shard) {
  const std::int64_t column = targets[row] - shard.first;
  return column >= 0 && column < shard.valid ? column : -1;
}

template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads, kResident)
    stats_kernel(const T* __restrict__ logits, const std::int32_t* targets, VocabularyShard shard, std::int64_t columns,
                 float* stats) {
  __shared__ float peaks[32], sums[32];
  const std::int64_t row = blockIdx.x;
  const T* x = logits + row * columns;
  Running running;
  for_each_logit<kWide>(
      x, shard.valid,
      [&](std::int64_t, const Packed<T>& vector) {
        float values[kVector];
        unpack(vector, values);
        running.take(values);
      },
      [&](std::int64_t i) {
        const float values[1] = {to_float(x[i])};
        running.take(values);
      });
  const float largest = block_max(running.largest, peaks);
  if (running.largest != largest) running.raise(largest);
  const float sum = block_sum(running.sum, sums);
  if (threadIdx.x != 0) return;
  const std::int64_t target = local_column(targets, row, shard);
  float* out = stats + row * 3;
  out[0] = largest;
  out[1] = sum;
  out[2] = target < 0 ? 0.0f : to_float(x[target]);
}

struct Softmax {
  float largest;  ///< Over all shards.
  float factor;   ///< scale / Σ exp(x − largest)
  float loss;
};

/// The stats of `row` of all shards, added in shard order. 0 · exp(−inf − m) is 0: a shard without valid columns adds
/// nothing.
__device__ inline Softmax combined(const float* all_stats, int shards, std::int64_t rows, std::int64_t row, float scale) {
  const auto stats = [&](int shard) { return all_stats + (shard * rows + row) * 3; };
  float largest = -INFINITY;
#pragma unroll 1
  for (int shard = 0; shard < shards; ++shard) largest = fmaxf(largest, stats(shard)[0]);
  double sum = 0, target = 0;
#pragma unroll 1
  for (int shard = 0; shard < shards; ++shard) {
    const double shift = static_cast<double>(stats(shard)[0]) - static_cast<double>(largest);
    sum += static_cast<double>(stats(shard)[1]) * (shift == 0 ? 1.0 : exp(shift));
    target += static_cast<double>(stats(shard)[2]);
  }
  return {largest, static_cast<float>(static_cast<double>(scale) / sum),
          static_cast<float>(log(sum) + static_cast<double>(largest) - target)};
}

/// With scale 0 it writes the losses alone.
template <class T, bool kWide>
__global__ void __launch_bounds__(kThreads, kResident)
    finish_kernel(T* logits, const std::int32_t* targets, VocabularyShard shard, std::int64_t columns,
                  const float* all_stats, int shards, float scale, float* losses) {
  __shared__ Softmax softmax;
  const std::int64_t row = blockIdx.x;
  if (threadIdx.x == 0) {
    softmax = combined(all_stats, shards, gridDim.x, row, scale);
    losses[row] = softmax.loss;
  }
  if (scale == 0.0f) return;
  __syncthreads();
  T* x = logits + row * columns;
  const float largest = softmax.largest, factor = softmax.factor;
  const std::int64_t target = local_column(targets, row, shard);
  for_each_logit<kWide>(
      x, shard.valid,
      [&](std::int64_t i, const Packed<T>& vector) {
        float values[kVector];
        unpack(vector, values);
#pragma unroll
        for (int k = 0; k < kVector; ++k) values[k] = factor * exp_fast(values[k] - largest);
        if (target >= i && target < i + kVector) {
#pragma unroll
          for (int k = 0; k < kVector; ++k) values[k] -= target == i + k ? scale : 0.0f;
        }
        store8(x + i, values);
      },
      [&](std::int64_t i) {
        x[i] = from_float<T>(factor * exp_fast(to_float(x[i]) - largest) - (target == i ? scale : 0.0f));
      });
  for (std::int64_t i = shard.valid + threadIdx.x; i < columns; i += kThreads) x[i] = from_float<T>(0.0f);
}

/// Calls work(T{}, wide) with the element type and whether every row may be read eight logits at a time.
template <class Work>
void with_row_type(const Tensor& logits, const Work& work) {
  with_compute_type(logits.dtype(), [&](auto element) {
    using T = decltype(element);
    if (logits.size(1) % kVector == 0 && aligned<16>(pointer<T>(logits))) {
      work(element, std::true_type{});
    } else {
      work(element, std::false_type{});
    }
  });
}

}  // namespace

void cross_entropy_stats(Stream& stream, const Tensor& logits, const Tensor& targets, VocabularyShard shard,
                         const Tensor& stats) {
  const NativeStream& native = cuda::native(stream);
  const std::int64_t rows = logits.size(0), columns = logits.size(1);
  if (rows == 0) return;
  with_row_type(logits, [&](auto element, auto wide) {
    using T = decltype(element);
    stats_kernel<T, decltype(wide)::value><<<static_cast<unsigned>(rows), kThreads, 0, native.stream>>>(
        pointer<const T>(logits), targets.as<std::int32_t>(), shard, columns, stats.as<float>());
    CUDA_CHECK(cudaGetLastError());
  });
}

void cross_entropy_finish(Stream& stream, const Tensor& logits, const Tensor& targets, VocabularyShard shard,
                          const Tensor& all_stats, float scale, const Tensor& losses) {
  const NativeStream& native = cuda::native(stream);
  const std::int64_t rows = logits.size(0), columns = logits.size(1);
  if (rows == 0) return;
  with_row_type(logits, [&](auto element, auto wide) {
    using T = decltype(element);
    finish_kernel<T, decltype(wide)::value><<<static_cast<unsigned>(rows), scale == 0.0f ? 1 : kThreads, 0, native.stream>>>(
        pointer<T>(logits), targets.as<std::int32_t>(), shard, columns, all_stats.as<float>(),
        static_cast<int>(all_stats.size(0)), scale, losses.as<float>());
    CUDA_CHECK(cudaGetLastError());
  });
}

}  // namespace dm::cuda
