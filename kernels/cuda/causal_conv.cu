// Causal depthwise convolution with SiLU on the GPU: a thread owns neighbouring channels and walks a tile of time.
//
// The last W inputs stay in registers, so every x is read once (and W − 1 again at each tile's edge): 4 bytes a channel and token forward,
// 6 backward in bf16, bound by memory. The fast kernels have W = 4 and four channels a thread (8-byte accesses, a warp covers 256 bytes
// of a row); other W, odd widths and calls with history take the general ones, one channel a thread.
//
// dweight and dbias: each (batch, tile) leaves a partial [D, W + 1] in the stream's workspace; a second kernel adds them in order.
#include <algorithm>

#include "kernels/causal_conv.h"
#include "kernels/cuda/common.cuh"

namespace dm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTaps = 4;      // of the fast kernels
constexpr int kChannels = 4;  // a thread of the fast kernels
constexpr int kMaxTaps = 8;
constexpr int kForwardTile = 64;

__device__ inline void load4(const float* from, float (&x)[kChannels]) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}
__device__ inline void load4(const bf16* from, float (&x)[kChannels]) {
  const uint2 words = *reinterpret_cast<const uint2*>(from);
  x[0] = __uint_as_float(words.x << 16), x[1] = __uint_as_float(words.x & 0xffff0000u);
  x[2] = __uint_as_float(words.y << 16), x[3] = __uint_as_float(words.y & 0xffff0000u);
}
__device__ inline void store4(float* to, const float (&x)[kChannels]) {
  *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
}
__device__ inline void store4(bf16* to, const float (&x)[kChannels]) {
  const __nv_bfloat162 low = __floats2bfloat162_rn(x[0], x[1]), high = __floats2bfloat162_rn(x[2], x[3]);
  *reinterpret_cast<uint2*>(to) =
      make_uint2(*reinterpret_cast<const std::uint32_t*>(&low), *reinterpret_cast<const std::uint32_t*>(&high));
}

/// A thread's weights and bias: four channels of [D, 4].
struct Taps {
  float weight[kChannels][kTaps];
  float bias[kChannels];

  __device__ Taps(const float* weights, const float* biases, int channel) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      float row[kTaps];
      load4(weights + (channel + c) * kTaps, row);
#pragma unroll
      for (int w = 0; w < kTaps; ++w) weight[c][w] = row[w];
    }
    load4(biases + channel, bias);
  }
};

/// Grid: channels / 4 / threads, tiles, batch.
template <class T>
__global__ void __launch_bounds__(kThreads) forward(const T* x, const float* weight, const float* bias, T* out, int tokens, int D) {
  const int channel = (blockIdx.x * kThreads + threadIdx.x) * kChannels;
  if (channel >= D) return;
  const Taps taps(weight, bias, channel);
  const int begin = blockIdx.y * kForwardTile, end = min(begin + kForwardTile, tokens);
  const std::int64_t base = std::int64_t{blockIdx.z} * tokens * D + channel;
  float window[kTaps][kChannels] = {};  // window[w] is x_{t − 3 + w}
#pragma unroll
  for (int w = 0; w < kTaps - 1; ++w) {
    if (begin - (kTaps - 1) + w >= 0) load4(x + base + std::int64_t{begin - (kTaps - 1) + w} * D, window[w + 1]);
  }
#pragma unroll 4
  for (int t = begin; t < end; ++t) {
#pragma unroll
    for (int w = 0; w + 1 < kTaps; ++w) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) window[w][c] = window[w + 1][c];
    }
    load4(x + base + std::int64_t{t} * D, window[kTaps - 1]);
    float y[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      float p = taps.bias[c];
#pragma unroll
      for (int w = 0; w < kTaps; ++w) p += taps.weight[c][w] * window[w][c];
      y[c] = silu(p);
    }
    store4(out + base + std::int64_t{t} * D, y);
  }
}

/// p̄ of token t is needed by dx of t − 3 … t: the loop runs three tokens past the tile, whose p̄ count for dx alone.
template <class T>
__global__ void __launch_bounds__(kThreads) backward(const T* dout, const T* x, const float* weight, const float* bias, T* dx,
                                                     float* partials, int tokens, int D, int tile) {
  const int channel = (blockIdx.x * kThreads + threadIdx.x) * kChannels;
  if (channel >= D) return;
  const Taps taps(weight, bias, channel);
  const int begin = blockIdx.y * tile, end = min(begin + tile, tokens);
  const std::int64_t base = std::int64_t{blockIdx.z} * tokens * D + channel;
  float window[kTaps][kChannels] = {};  // x_{t − 3 + w}
  float ahead[kTaps][kChannels] = {};   // p̄_{t − 3 + w}
  float dweight[kChannels][kTaps] = {}, dbias[kChannels] = {};
#pragma unroll
  for (int w = 0; w < kTaps - 1; ++w) {
    if (begin - (kTaps - 1) + w >= 0) load4(x + base + std::int64_t{begin - (kTaps - 1) + w} * D, window[w + 1]);
  }
#pragma unroll 2
  for (int t = begin; t < end + kTaps - 1; ++t) {
#pragma unroll
    for (int w = 0; w + 1 < kTaps; ++w) {
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        window[w][c] = window[w + 1][c];
        ahead[w][c] = ahead[w + 1][c];
      }
    }
    float dy[kChannels] = {};
    if (t < tokens) {
      load4(x + base + std::int64_t{t} * D, window[kTaps - 1]);
      load4(dout + base + std::int64_t{t} * D, dy);
    }
    const float counted = t < end ? 1.0f : 0.0f;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      float p = taps.bias[c];
#pragma unroll
      for (int w = 0; w < kTaps; ++w) p += taps.weight[c][w] * window[w][c];
      const float dp = dy[c] * silu_derivative(p);
      ahead[kTaps - 1][c] = dp;
      dbias[c] += counted * dp;
#pragma unroll
      for (int w = 0; w < kTaps; ++w) dweight[c][w] += counted * dp * window[w][c];
    }
    if (t - (kTaps - 1) < begin) continue;
    float dxs[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      dxs[c] = 0;  // dx_s = Σ_w weight[w] p̄_{s + 3 − w} with s = t − 3
#pragma unroll
      for (int w = 0; w < kTaps; ++w) dxs[c] += taps.weight[c][w] * ahead[kTaps - 1 - w][c];
    }
    store4(dx + base + std::int64_t{t - (kTaps - 1)} * D, dxs);
  }
  float* partial = partials + (std::int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * D * (kTaps + 1) + std::int64_t{channel} * (kTaps + 1);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
#pragma unroll
    for (int w = 0; w < kTaps; ++w) partial[c * (kTaps + 1) + w] = dweight[c][w];
    partial[c * (kTaps + 1) + kTaps] = dbias[c];
  }
}

/// One thread a (batch, channel), all of time: any W, any width, with history.
template <class T>
__global__ void __launch_bounds__(kThreads) forward_general(const T* x, const float* weight, const float* bias, float* history, T* out,
                                                            int tokens, int D, int W) {
  const int channel = blockIdx.x * kThreads + threadIdx.x;
  if (channel >= D) return;
  const std::int64_t base = std::int64_t{blockIdx.y} * tokens * D + channel;
  float* past = history ? history + std::int64_t{blockIdx.y} * (W - 1) * D + channel : nullptr;
  float window[kMaxTaps] = {};  // the newest last, in window[kMaxTaps − 1]
#pragma unroll
  for (int k = 1; k < kMaxTaps; ++k) {
    const int row = k - (kMaxTaps - W) - 1;  // of history
    if (past && row >= 0) window[k] = past[std::int64_t{row} * D];
  }
  for (int t = 0; t < tokens; ++t) {
    float p = bias[channel];
#pragma unroll
    for (int k = 0; k < kMaxTaps; ++k) {
      window[k] = k + 1 < kMaxTaps ? window[k + 1 < kMaxTaps ? k + 1 : 0] : to_float(x[base + std::int64_t{t} * D]);
      const int w = k - (kMaxTaps - W);
      if (w >= 0) p += weight[channel * W + w] * window[k];
    }
    out[base + std::int64_t{t} * D] = from_float<T>(silu(p));
  }
  if (!past) return;
#pragma unroll
  for (int k = 1; k < kMaxTaps; ++k) {
    const int row = k - (kMaxTaps - W) - 1;
    if (row >= 0) past[std::int64_t{row} * D] = window[k];
  }
}

/// One thread a (batch, tile, channel): recomputes each p of the W that a dx needs.
template <class T>
__global__ void __launch_bounds__(kThreads) backward_general(const T* dout, const T* x, const float* weight, const float* bias, T* dx,
                                                             float* partials, int tokens, int D, int W, int tile) {
  const int channel = blockIdx.x * kThreads + threadIdx.x;
  if (channel >= D) return;
  const std::int64_t base = std::int64_t{blockIdx.z} * tokens * D + channel;
  const int begin = blockIdx.y * tile, end = min(begin + tile, tokens);
  const auto input = [&](int t) { return t >= 0 ? to_float(x[base + std::int64_t{t} * D]) : 0.0f; };
  const auto cotangent = [&](int t) {
    float p = bias[channel];
    for (int w = 0; w < W; ++w) p += weight[channel * W + w] * input(t - W + 1 + w);
    return to_float(dout[base + std::int64_t{t} * D]) * silu_derivative(p);
  };
  float* partial = partials + ((std::int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * D + channel) * (W + 1);
  for (int w = 0; w <= W; ++w) partial[w] = 0;
  for (int t = begin; t < end; ++t) {
    const float dp = cotangent(t);
    for (int w = 0; w < W; ++w) partial[w] += dp * input(t - W + 1 + w);
    partial[W] += dp;
    float sum = 0;
    for (int w = 0; w < W; ++w) {
      const int s = t + W - 1 - w;
      if (s < tokens) sum += weight[channel * W + w] * cotangent(s);
    }
    dx[base + std::int64_t{t} * D] = from_float<T>(sum);
  }
}

/// dweight[d, w] and dbias[d] += the partials in order; a thread owns one of the D·(W + 1) sums.
__global__ void __launch_bounds__(kThreads) add_partials(const float* partials, int parts, float* dweight, float* dbias, int D, int W) {
  const int at = blockIdx.x * kThreads + threadIdx.x, width = D * (W + 1);
  if (at >= width) return;
  float sum = 0;
  for (int part = 0; part < parts; ++part) sum += partials[std::int64_t{part} * width + at];
  const int channel = at / (W + 1), w = at % (W + 1);
  if (w < W) {
    dweight[channel * W + w] += sum;
  } else {
    dbias[channel] += sum;
  }
}

}  // namespace

void causal_conv_silu_forward(Stream& stream, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& history,
                              const Tensor& out) {
  const NativeStream& native = cuda::native(stream);
  const int B = static_cast<int>(x.size(0)), tokens = static_cast<int>(x.size(1)), D = static_cast<int>(x.size(2));
  const int W = static_cast<int>(weight.size(-1));
  if (x.numel() == 0) return;
  with_compute_type(x.dtype(), [&](auto element) {
    using T = decltype(element);
    const bool fast = W == kTaps && D % kChannels == 0 && !history &&
                      aligned16(pointer<T>(x), pointer<T>(out), weight.as<float>(), bias.as<float>());
    if (fast) {
      const dim3 grid(ceil_div(D / kChannels, kThreads), ceil_div(tokens, kForwardTile), B);
      forward<T><<<grid, kThreads, 0, native.stream>>>(pointer<const T>(x), weight.as<float>(), bias.as<float>(), pointer<T>(out),
                                                       tokens, D);
    } else {
      forward_general<T><<<dim3(ceil_div(D, kThreads), B), kThreads, 0, native.stream>>>(
          pointer<const T>(x), weight.as<float>(), bias.as<float>(), history ? history.as<float>() : nullptr, pointer<T>(out), tokens,
          D, W);
    }
    CUDA_CHECK(cudaGetLastError());
  });
}

void causal_conv_silu_backward(Stream& stream, const Tensor& dout, const Tensor& x, const Tensor& weight, const Tensor& bias,
                               const Tensor& dx, const Tensor& dweight, const Tensor& dbias) {
  const NativeStream& native = cuda::native(stream);
  const int B = static_cast<int>(x.size(0)), tokens = static_cast<int>(x.size(1)), D = static_cast<int>(x.size(2));
  const int W = static_cast<int>(weight.size(-1));
  if (x.numel() == 0) return;
  // About 256 parts in all: enough blocks to fill the device, few enough that their partials do not matter. A part fits the workspace.
  const auto part_bytes = static_cast<std::int64_t>(sizeof(float)) * D * (W + 1);
  std::int64_t parts = std::max<std::int64_t>(256 / B, 1);
  parts = std::max<std::int64_t>(std::min(parts, static_cast<std::int64_t>(native.workspace_bytes) / (part_bytes * B)), 1);
  require(part_bytes * B <= static_cast<std::int64_t>(native.workspace_bytes), "causal_conv_silu_backward: batch × width is too large");
  const int tile = std::max(ceil_div(tokens, parts), 32), tiles = ceil_div(tokens, tile);
  auto* partials = static_cast<float*>(native.workspace);
  with_compute_type(x.dtype(), [&](auto element) {
    using T = decltype(element);
    const bool fast = W == kTaps && D % kChannels == 0 &&
                      aligned16(pointer<T>(dout), pointer<T>(x), pointer<T>(dx), weight.as<float>(), bias.as<float>());
    if (fast) {
      backward<T><<<dim3(ceil_div(D / kChannels, kThreads), tiles, B), kThreads, 0, native.stream>>>(
          pointer<const T>(dout), pointer<const T>(x), weight.as<float>(), bias.as<float>(), pointer<T>(dx), partials, tokens, D, tile);
    } else {
      backward_general<T><<<dim3(ceil_div(D, kThreads), tiles, B), kThreads, 0, native.stream>>>(
          pointer<const T>(dout), pointer<const T>(x), weight.as<float>(), bias.as<float>(), pointer<T>(dx), partials, tokens, D, W,
          tile);
    }
    CUDA_CHECK(cudaGetLastError());
  });
  add_partials<<<ceil_div(std::int64_t{D} * (W + 1), kThreads), kThreads, 0, native.stream>>>(partials, tiles * B, dweight.as<float>(),
                                                                                              dbias.as<float>(), D, W);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace dm::cuda
