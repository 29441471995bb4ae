// RMSNorm on the GPU: a thread owns eight columns of a row. Forward, a block has one row, and many blocks a multiprocessor
// hide one another's waits. Backward, a block walks rows, so that the gradient of the weight stays in registers; the next
// row is on its way while the block adds up this one.
//
// Bytes a token (C columns, bf16): forward 4C residual in + 2C update in + 4C residual out + 2C out; backward 2C + 2C in, 4C
// in and out, 2C copy out. Both are bound by memory. Widths that are no multiple of 8, or above 5120, take the
// strided kernels, which read a row twice.
//
// dweight: every block sums its rows in order into a partial row in the stream's workspace; a second kernel adds these rows
// in a fixed order.
#include "kernels/rmsnorm.h"

#include <algorithm>
#include <cfloat>

#include "kernels/cuda/reduction.cuh"

namespace dm::cuda {
namespace {

constexpr int kMaxThreads = 640;  // of a block and of a multiprocessor: 96 registers a thread
constexpr int kStridedThreads = 256;

/// Blocks for `rows` rows: as many as run at once, never more than rows.
int blocks_for(const NativeStream& native, std::int64_t rows, int threads) {
  return static_cast<int>(std::min<std::int64_t>(rows, native.multiprocessors * (kMaxThreads / threads)));
}

/// What is added to a tensor of n elements before it is used: `count` tensors like it, one behind the other.
template <class T>
struct More {
  const T* at;
  int count;
  std::int64_t n;

  explicit More(const Tensor& more)
      : at(more ? pointer<const T>(more) : nullptr),
        count(more ? static_cast<int>(more.size(0)) : 0),
        n(more ? more.size(1) * more.size(2) : 0) {}

  /// Adds those from the `first` on.
  __device__ void add(std::int64_t element, float (&x)[kVector], int first = 0) const {
#pragma unroll 1
    for (int k = first; k < count; ++k) {
      float y[kVector];
      load8(at + k * n + element, y);
#pragma unroll
      for (int i = 0; i < kVector; ++i) x[i] += y[i];
    }
  }
  __device__ float sum(std::int64_t element, float x) const {
    for (int k = 0; k < count; ++k) x += to_float(at[k * n + element]);
    return x;
  }
};

/// A block a row. residual_out may be residual; `update` may be null.
template <class T, class Update>
__global__ void __launch_bounds__(kMaxThreads)
    forward(const float* residual, const Update* update, const More<Update> more, const float* weight, float* residual_out,
            T* out, float* rstd, int C) {
  __shared__ float sums[32];
  const int column = threadIdx.x * kVector;
  const bool active = column < C;
  const std::int64_t row = blockIdx.x, at = row * C + column;
  float x[kVector] = {}, u[kVector] = {}, w[kVector];
  if (active) {
    load8(residual + at, x);
    if (update) load8(update + at, u);
    load8(weight + column, w);
    more.add(at, u);
  }
  float square = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    x[i] += u[i];
    square += x[i] * x[i];
  }
  const float scale = rsqrtf(block_sum(square, sums) / static_cast<float>(C) + kRmsNormEpsilon);
  if (threadIdx.x == 0) rstd[row] = scale;
  if (!active) return;
  if (update || residual != residual_out) store8(residual_out + at, x);
#pragma unroll
  for (int i = 0; i < kVector; ++i) x[i] = x[i] * scale * w[i];
  store8(out + at, x);
}

template <class T, class Update>
__global__ void __launch_bounds__(kStridedThreads)
    forward_strided(const float* residual, const Update* update, const More<Update> more, const float* weight,
                    float* residual_out, T* out, float* rstd, std::int64_t rows, int C) {
  __shared__ float sums[2][32];
  int turn = 0;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    const std::int64_t begin = row * C;
    float square = 0;
    for (int c = threadIdx.x; c < C; c += kStridedThreads) {
      const float x = residual[begin + c] + (update ? more.sum(begin + c, to_float(update[begin + c])) : 0.0f);
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

/// 1 / weight, or 0 where that is zero or denormal.
__device__ inline float inverse(float weight) {
  return fabsf(weight) < FLT_MIN ? 0.0f : reciprocal(weight);
}

/// Σ dout ⊙ x̂ over the rows is Σ dout ⊙ x, divided by the weight once. dupdate may be dout or x: every element is written by
/// the thread that read it.
template <class T>
__global__ void __launch_bounds__(kMaxThreads)
    backward(const T* dout, const More<T> more, const T* normed, const float* rstd, const float* weight, float* dresidual,
             T* dupdate, float* partials, std::int64_t rows, int C) {
  __shared__ float sums[2][32];
  const int column = threadIdx.x * kVector;
  const bool active = column < C;
  float w[kVector] = {}, dweight[kVector] = {};
  if (active) load8(weight + column, w);
  Packed<T> next_x = {}, next_dout = {}, next_more = {};
  Packed<float> next_dresidual = {};
  float next_scale = 0;
  const auto load = [&](std::int64_t row) {
    if (!active || row >= rows) return;
    const std::int64_t at = row * C + column;
    next_x = load_packed(normed + at), next_dout = load_packed(dout + at), next_dresidual = load_packed(dresidual + at);
    if (more.count > 0) next_more = load_packed(more.at + at);
    next_scale = rstd[row];
  };
  load(blockIdx.x);
  int turn = 0;
#pragma unroll 1
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    const std::int64_t at = row * C + column;
    const Packed<T> packed_x = next_x, packed_dout = next_dout, packed_more = next_more;
    const Packed<float> packed_dresidual = next_dresidual;
    const float scale = next_scale;
    load(row + gridDim.x);
    float x[kVector], dy[kVector], d[kVector];
    unpack(packed_x, x);
    unpack(packed_dout, dy);
    if (more.count > 0) {
      unpack(packed_more, d);
#pragma unroll
      for (int i = 0; i < kVector; ++i) dy[i] += d[i];
      if (active) more.add(at, dy, 1);
    }
    float dot = 0;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float product = dy[i] * x[i];
      dweight[i] += product;
      dot += product;
    }
    const float mean = block_sum(dot, sums[turn]) / static_cast<float>(C);
    if (!active) continue;
    unpack(packed_dresidual, d);
#pragma unroll
    for (int i = 0; i < kVector; ++i) d[i] += scale * (dy[i] * w[i] - x[i] * inverse(w[i]) * mean);
    store8(dresidual + at, d);
    if (dupdate) store8(dupdate + at, d);
  }
  if (!active) return;
#pragma unroll
  for (int i = 0; i < kVector; ++i) dweight[i] *= inverse(w[i]);
  store8(partials + static_cast<std::int64_t>(blockIdx.x) * C + column, dweight);
}

template <class T>
__global__ void __launch_bounds__(kStridedThreads)
    backward_strided(const T* dout, const More<T> more, const T* normed, const float* rstd, const float* weight,
                     float* dresidual, T* dupdate, float* partials, std::int64_t rows, int C) {
  __shared__ float sums[2][32];
  float* partial = partials + static_cast<std::int64_t>(blockIdx.x) * C;
  for (int c = threadIdx.x; c < C; c += kStridedThreads) partial[c] = 0;
  int turn = 0;
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x, turn ^= 1) {
    const std::int64_t begin = row * C;
    const float scale = rstd[row];
    float dot = 0;
#pragma unroll 1
    for (int c = threadIdx.x; c < C; c += kStridedThreads) {
      const float product = more.sum(begin + c, to_float(dout[begin + c])) * to_float(normed[begin + c]);
      partial[c] += product * inverse(weight[c]);
      dot += product;
    }
    const float mean = block_sum(dot, sums[turn]) / static_cast<float>(C);
#pragma unroll 1
    for (int c = threadIdx.x; c < C; c += kStridedThreads) {
      const float x = to_float(normed[begin + c]) * inverse(weight[c]);
      const float d = dresidual[begin + c] + scale * (more.sum(begin + c, to_float(dout[begin + c])) * weight[c] - x * mean);
      dresidual[begin + c] = d;
      if (dupdate) dupdate[begin + c] = from_float<T>(d);
    }
  }
}

/// Threads for a width that has a vector of columns for each of at most kMaxThreads; 0 when it has not.
int vector_threads(int C) {
  return C % kVector == 0 && C / kVector <= kMaxThreads ? (C / kVector + 31) / 32 * 32 : 0;
}

}  // namespace

void add_rmsnorm_forward(Stream& stream, const Tensor& residual, const Tensor& update, const Tensor& more,
                         const Tensor& weight, const Tensor& residual_out, const Tensor& out, const Tensor& rstd) {
  const NativeStream& native = cuda::native(stream);
  const std::int64_t rows = residual.rows();
  const int C = static_cast<int>(residual.size(-1));
  if (rows == 0 || C == 0) return;
  const auto run = [&](auto element, auto update_element) {
    using T = decltype(element);
    using Update = decltype(update_element);
    const float *in = residual.as<float>(), *w = weight.as<float>();
    const Update* add = update ? pointer<const Update>(update) : nullptr;
    const More<Update> others(more);
    float *sum = residual_out.as<float>(), *scales = rstd.as<float>();
    const int vector = vector_threads(C);
    const bool wide = vector > 0 && aligned<16>(in, add, others.at, w, sum, pointer<T>(out));
    if (wide) {
      forward<T, Update>
          <<<static_cast<unsigned>(rows), vector, 0, native.stream>>>(in, add, others, w, sum, pointer<T>(out), scales, C);
    } else {
      forward_strided<T, Update><<<blocks_for(native, rows, kStridedThreads), kStridedThreads, 0, native.stream>>>(
          in, add, others, w, sum, pointer<T>(out), scales, rows, C);
    }
    CUDA_CHECK(cudaGetLastError());
  };
  with_compute_type(out.dtype(), [&](auto element) {
    if (update && update.dtype() == DType::f32) return run(element, float{});
    if constexpr (std::is_same_v<decltype(element), bf16>) return run(element, element);
    require(!update, "add_rmsnorm_forward: a bfloat16 update needs a bfloat16 output");
    run(element, float{});
  });
}

void rmsnorm_backward(Stream& stream, const Tensor& dout, const Tensor& more, const Tensor& x, const Tensor& rstd,
                      const Tensor& weight, const Tensor& dresidual, const Tensor& dupdate, const Tensor& dweight) {
  const NativeStream& native = cuda::native(stream);
  const std::int64_t rows = x.rows();
  const int C = static_cast<int>(x.size(-1));
  if (rows == 0 || C == 0) return;
  with_compute_type(dout.dtype(), [&](auto element) {
    using T = decltype(element);
    T* copy = dupdate ? pointer<T>(dupdate) : nullptr;
    const More<T> others(more);
    const int vector = vector_threads(C);
    const bool wide = vector > 0 && aligned<16>(pointer<T>(dout), others.at, pointer<T>(x), weight.as<float>(),
                                                dresidual.as<float>(), copy);
    const int threads = wide ? vector : kStridedThreads;
    int blocks = blocks_for(native, rows, threads);
    const auto room = static_cast<int>(native.workspace_bytes / (sizeof(float) * static_cast<std::size_t>(C)));
    require(room > 0, "rmsnorm_backward: rows are too wide for the workspace");
    blocks = std::min(blocks, room);
    auto* partials = static_cast<float*>(native.workspace);
    const auto kernel = wide ? backward<T> : backward_strided<T>;
    kernel<<<blocks, threads, 0, native.stream>>>(pointer<const T>(dout), others, pointer<const T>(x), rstd.as<float>(),
                                                  weight.as<float>(), dresidual.as<float>(), copy, partials, rows, C);
    CUDA_CHECK(cudaGetLastError());
    add_rows(native, partials, blocks, C, dweight.as<float>(), C, nullptr);
  });
}

}  // namespace dm::cuda
