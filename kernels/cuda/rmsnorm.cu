// RMSNorm on the GPU: a block walks rows, a thread owns the same eight columns of each, so weight and its gradient stay in registers.
//
// Bytes a token (C columns, bf16): forward 4C residual in + 2C update in + 4C residual out + 2C out; backward 2C + 4C in, 4C in and out,
// 2C copy out. Both are bound by memory: rows are many more than blocks, and 4 to 16 blocks a multiprocessor hide the one block-wide
// sum a row. Widths that are no multiple of 8, or above 8192, take the strided kernels, which read a row twice.
//
// dweight: every block sums its rows in order into a partial row in the stream's workspace; a second kernel adds the partials in
// block order.
#include "kernels/cuda/common.cuh"
#include "kernels/rmsnorm.h"

namespace dm::cuda {
namespace {

constexpr int kMaxThreads = 1024;
constexpr int kStridedThreads = 256;

/// Blocks for `rows` rows: enough to fill the device several times at this block size, never more than rows.
int blocks_for(const NativeStream& native, std::int64_t rows, int threads) {
  const int resident = native.multiprocessors * (2048 / threads < 16 ? 2048 / threads : 16);
  return static_cast<int>(rows < resident ? rows : resident);
}

template <class T, bool kHasUpdate>
__global__ void __launch_bounds__(kMaxThreads) forward(const float* residual, const T* update, const float* weight,
                                                       float* residual_out, T* out, float* rstd, std::int64_t rows, int C) {
  __shared__ float sums[2][32];
  const int column = threadIdx.x * kVector;
  const bool active = column < C;
  float w[kVector] = {};
  if (active) load8(weight + column, w);
  int turn = 0;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    const std::int64_t at = row * C + column;
    float x[kVector] = {};
    if (active) {
      load8(residual + at, x);
      if constexpr (kHasUpdate) {
        float u[kVector];
        load8(update + at, u);
#pragma unroll
        for (int i = 0; i < kVector; ++i) x[i] += u[i];
      }
    }
    float square = 0;
#pragma unroll
    for (int i = 0; i < kVector; ++i) square += x[i] * x[i];
    const float scale = rsqrtf(block_sum(square, sums[turn]) / static_cast<float>(C) + kRmsNormEpsilon);
    if (threadIdx.x == 0) rstd[row] = scale;
    if (!active) continue;
    if (kHasUpdate || residual != residual_out) store8(residual_out + at, x);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] = x[i] * scale * w[i];
    store8(out + at, x);
  }
}

template <class T>
__global__ void __launch_bounds__(kStridedThreads) forward_strided(const float* residual, const T* update, const float* weight,
                                                                   float* residual_out, T* out, float* rstd, std::int64_t rows,
                                                                   int C) {
  __shared__ float sums[2][32];
  int turn = 0;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    const std::int64_t begin = row * C;
    float square = 0;
    for (int c = threadIdx.x; c < C; c += kStridedThreads) {
      const float x = residual[begin + c] + (update ? to_float(update[begin + c]) : 0.0f);
      residual_out[begin + c] = x;  // read again below by the thread that wrote it
      square += x * x;
    }
    const float scale = rsqrtf(block_sum(square, sums[turn]) / static_cast<float>(C) + kRmsNormEpsilon);
    if (threadIdx.x == 0) rstd[row] = scale;
    for (int c = threadIdx.x; c < C; c += kStridedThreads) {
      out[begin + c] = from_float<T>(residual_out[begin + c] * scale * weight[c]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kMaxThreads) backward(const T* dout, const float* residual, const float* rstd, const float* weight,
                                                        float* dresidual, T* dupdate, float* partials, std::int64_t rows, int C) {
  __shared__ float sums[2][32];
  const int column = threadIdx.x * kVector;
  const bool active = column < C;
  float w[kVector] = {}, dweight[kVector] = {};
  if (active) load8(weight + column, w);
  int turn = 0;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    const std::int64_t at = row * C + column;
    const float scale = rstd[row];
    float x[kVector] = {}, dy[kVector] = {};
    if (active) {
      load8(residual + at, x);
      load8(dout + at, dy);
    }
    float dot = 0;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      x[i] *= scale;
      dweight[i] += dy[i] * x[i];
      dy[i] *= w[i];
      dot += dy[i] * x[i];
    }
    const float mean = block_sum(dot, sums[turn]) / static_cast<float>(C);
    if (!active) continue;
    float d[kVector];
    load8(dresidual + at, d);
#pragma unroll
    for (int i = 0; i < kVector; ++i) d[i] += scale * (dy[i] - x[i] * mean);
    store8(dresidual + at, d);
    if (dupdate) store8(dupdate + at, d);
  }
  if (active) store8(partials + static_cast<std::int64_t>(blockIdx.x) * C + column, dweight);
}

template <class T>
__global__ void __launch_bounds__(kStridedThreads) backward_strided(const T* dout, const float* residual, const float* rstd,
                                                                    const float* weight, float* dresidual, T* dupdate,
                                                                    float* partials, std::int64_t rows, int C) {
  __shared__ float sums[2][32];
  float* partial = partials + static_cast<std::int64_t>(blockIdx.x) * C;
  for (int c = threadIdx.x; c < C; c += kStridedThreads) partial[c] = 0;
  int turn = 0;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    const std::int64_t begin = row * C;
    const float scale = rstd[row];
    float dot = 0;
    for (int c = threadIdx.x; c < C; c += kStridedThreads) {
      const float x = residual[begin + c] * scale, dy = to_float(dout[begin + c]);
      partial[c] += dy * x;
      dot += dy * weight[c] * x;
    }
    const float mean = block_sum(dot, sums[turn]) / static_cast<float>(C);
    for (int c = threadIdx.x; c < C; c += kStridedThreads) {
      const float x = residual[begin + c] * scale;
      const float d = dresidual[begin + c] + scale * (to_float(dout[begin + c]) * weight[c] - x * mean);
      dresidual[begin + c] = d;
      if (dupdate) dupdate[begin + c] = from_float<T>(d);
    }
  }
}

/// dweight[c] += Σ partials[block][c] in block order: a warp's lanes read neighbouring columns, eight warps take every eighth block.
__global__ void __launch_bounds__(256) add_partials(const float* partials, int blocks, float* dweight, int C) {
  __shared__ float sums[8][33];
  const int lane = threadIdx.x % 32, part = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
  float sum = 0;
  if (column < C) {
    for (int block = part; block < blocks; block += 8) sum += partials[static_cast<std::int64_t>(block) * C + column];
  }
  sums[part][lane] = sum;
  __syncthreads();
  if (part != 0 || column >= C) return;
  for (int other = 1; other < 8; ++other) sum += sums[other][lane];
  dweight[column] += sum;
}

/// Threads for a width that has a vector of columns for each of at most 1024 threads; 0 when it has not.
int vector_threads(int C) { return C % kVector == 0 && C / kVector <= kMaxThreads ? (C / kVector + 31) / 32 * 32 : 0; }

}  // namespace

void add_rmsnorm_forward(Stream& stream, const Tensor& residual, const Tensor& update, const Tensor& weight,
                         const Tensor& residual_out, const Tensor& out, const Tensor& rstd) {
  const NativeStream& native = cuda::native(stream);
  const std::int64_t rows = residual.rows();
  const int C = static_cast<int>(residual.size(-1));
  if (rows == 0 || C == 0) return;
  with_compute_type(out.dtype(), [&](auto element) {
    using T = decltype(element);
    // The update may be float32 beside a bf16 output only where there is none: layers write it in the compute dtype.
    const T* update_data = update ? update.as<std::conditional_t<std::is_same_v<T, float>, float, BFloat16>>() != nullptr
                                        ? pointer<const T>(update)
                                        : nullptr
                                  : nullptr;
    const float* in = pointer<const float>(residual);
    const int threads = vector_threads(C);
    if (threads > 0 && aligned16(in, update_data, weight.as<float>(), residual_out.as<float>(), pointer<T>(out))) {
      const int blocks = blocks_for(native, rows, threads);
      const auto kernel = update ? forward<T, true> : forward<T, false>;
      kernel<<<blocks, threads, 0, native.stream>>>(in, update_data, weight.as<float>(), residual_out.as<float>(), pointer<T>(out),
                                                    rstd.as<float>(), rows, C);
    } else {
      forward_strided<T><<<blocks_for(native, rows, kStridedThreads), kStridedThreads, 0, native.stream>>>(
          in, update_data, weight.as<float>(), residual_out.as<float>(), pointer<T>(out), rstd.as<float>(), rows, C);
    }
    CUDA_CHECK(cudaGetLastError());
  });
}

void rmsnorm_backward(Stream& stream, const Tensor& dout, const Tensor& residual, const Tensor& rstd, const Tensor& weight,
                      const Tensor& dresidual, const Tensor& dupdate, const Tensor& dweight) {
  const NativeStream& native = cuda::native(stream);
  const std::int64_t rows = residual.rows();
  const int C = static_cast<int>(residual.size(-1));
  if (rows == 0 || C == 0) return;
  with_compute_type(dout.dtype(), [&](auto element) {
    using T = decltype(element);
    T* copy = dupdate ? pointer<T>(dupdate) : nullptr;
    const int vector = vector_threads(C);
    const bool wide = vector > 0 && aligned16(pointer<T>(dout), residual.as<float>(), weight.as<float>(), dresidual.as<float>(), copy);
    const int threads = wide ? vector : kStridedThreads;
    int blocks = blocks_for(native, rows, threads);
    const auto room = static_cast<int>(native.workspace_bytes / (sizeof(float) * static_cast<std::size_t>(C)));
    blocks = blocks < room ? blocks : room;
    auto* partials = static_cast<float*>(native.workspace);
    const auto kernel = wide ? backward<T> : backward_strided<T>;
    kernel<<<blocks, threads, 0, native.stream>>>(pointer<const T>(dout), residual.as<float>(), rstd.as<float>(), weight.as<float>(),
                                                  dresidual.as<float>(), copy, partials, rows, C);
    CUDA_CHECK(cudaGetLastError());
    add_partials<<<ceil_div(C, 32), 256, 0, native.stream>>>(partials, blocks, dweight.as<float>(), C);
    CUDA_CHECK(cudaGetLastError());
  });
}

}  // namespace dm::cuda
