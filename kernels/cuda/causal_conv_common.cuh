// What the fast kernels of the convolution share: a thread's four channels, its window of time and its loads in flight.
#pragma once

#include "kernels/cuda/common.cuh"

namespace dm::cuda::conv {

inline constexpr int kThreads = 128;
inline constexpr int kTaps = 4;
inline constexpr int kChannels = 4;  // a thread
/// Tokens of one tensor in flight beside those at work: 32 bytes a thread.
template <class T>
inline constexpr int kBatch = 8 / static_cast<int>(sizeof(T));

/// The inputs of tokens [begin, begin + kBatch); those from `end` on are zero.
template <class T>
__device__ inline void load_batch(const T* x, int begin, int end, int stride, Packed<T, kChannels> (&batch)[kBatch<T>]) {
#pragma unroll
  for (int b = 0; b < kBatch<T>; ++b) {
    batch[b] = begin + b < end ? load_packed<kChannels>(x + std::int64_t{begin + b} * stride) : Packed<T, kChannels>{};
  }
}
/// Makes room for the newest: row w takes what row w + 1 held.
__device__ inline void shift(float (&rows)[kTaps][kChannels]) {
#pragma unroll
  for (int w = 0; w + 1 < kTaps; ++w) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) rows[w][c] = rows[w + 1][c];
  }
}
/// Loads x_{begin − 3} … x_{begin − 1} into rows 1 … 3, from where the first shift moves them down; zero before the
/// sequence.
template <class T>
__device__ inline void load_before(const T* x, int begin, int stride, float (&window)[kTaps][kChannels]) {
#pragma unroll
  for (int w = 1; w < kTaps; ++w) {
    const int t = begin - kTaps + w;
    if (t >= 0) unpack(load_packed<kChannels>(x + std::int64_t{t} * stride), window[w]);
  }
}

/// A thread's weights and bias: four channels of [D, 4].
struct Taps {
  float weight[kChannels][kTaps];
  float bias[kChannels];

  __device__ Taps(const float* weights, const float* biases, int channel) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) unpack(load_packed<kChannels>(weights + (channel + c) * kTaps), weight[c]);
    unpack(load_packed<kChannels>(biases + channel), bias);
  }

  __device__ float operator()(const float (&window)[kTaps][kChannels], int c) const {
    float p = bias[c];
#pragma unroll
    for (int w = 0; w < kTaps; ++w) p += weight[c][w] * window[w][c];
    return p;
  }
};

/// Taps times −log2(e), so that what `operator()` returns goes to exp2 as it is. Cotangents of p are then 1 / log2(e) of
/// theirs, which counts in the end alone.
struct ScaledTaps : Taps {
  __device__ ScaledTaps(const float* weights, const float* biases, int channel) : Taps(weights, biases, channel) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      bias[c] *= -kLog2e;
#pragma unroll
      for (int w = 0; w < kTaps; ++w) weight[c][w] *= -kLog2e;
    }
  }
  /// dout · silu'(p) / log2(e) from −log2(e) · p: with S = ln 2 · sigmoid(p), silu'(p) ln 2 = S + p ln 2 · S (1 − S / ln 2).
  __device__ static float cotangent(float scaled, float dout) {
    const float s = reciprocal(fmaf(exp2_fast(scaled), kLog2e, kLog2e));
    return dout * fmaf(-scaled, s * (kLn2 - s), s);
  }
};

}  // namespace dm::cuda::conv
