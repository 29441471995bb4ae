// Causal depthwise convolution with SiLU on the GPU: a thread owns neighbouring channels and walks a tile of time.
//
// The last W inputs stay in registers, so every x is read once: 4 bytes a channel and token forward, 6 backward in bf16,
// bound by memory. The fast kernels have W = 4 and four channels a thread (8-byte accesses of bf16, a warp covers 256 bytes
// of a row). Forward, a thread has eight tokens, whose loads are all in flight at once. Backward, it walks a tile as long
// as one wave of blocks allows, for every tile walks three tokens more and leaves partial sums; the next four tokens are on
// their way while four are at work. Other W, odd widths and calls with history take the general ones, one channel a thread.
//
// Where a linear layer reads the output, its part of backward's cotangent is multiplied on the way (BatchWalk): 6 bytes a
// channel and token where product and convolution apart move 10.
//
// dweight and dbias: each (batch, tile) leaves a partial row [D·W | D] in the stream's workspace; a second kernel adds them
// in order.
#include "kernels/causal_conv.h"

#include <algorithm>

#include "kernels/cuda/causal_conv_product.cuh"
#include "kernels/cuda/reduction.cuh"
#include "kernels/cuda/register_share.cuh"
#include "kernels/matmul.h"

namespace dm::cuda {
namespace {

using namespace conv;

constexpr int kMaxTaps = 8;
constexpr int kProjectedResident = 1;                     // blocks of backward_projected a multiprocessor
constexpr int kCopyRegisters = 40, kWalkRegisters = 232;  // a thread that copies, and one that walks with columns of K
static_assert(kProjectedResident * (kCopyThreads * kCopyRegisters + kWalkThreads * kWalkRegisters) <= 65536);
constexpr int kForwardTokens = 8;  // a thread
// Blocks a multiprocessor, as many as registers hold
template <class T>
constexpr int kForwardResident = std::is_same_v<T, float> ? 5 : 8;
constexpr int kBackwardResident = 4;

/// What tiles of backward cost beside their tokens: as many more as a block could walk while it starts and ends one, and the
/// part of a tile's time by which the last blocks end apart.
struct TileCost {
  int start;
  double spread;
};
constexpr TileCost kBackwardCost{8, 0};
/// Of backward_projected, which starts with the columns of a product of K. Of blocks that walk side by side some get a sixth
/// more of the memory's rate than others.
constexpr TileCost projected_cost(int K) {
  return {20 + K / 2, 0.08};
}

/// Grid: groups of a warp's channels, of a block's tokens (eight a warp), batch. A thread has all its loads in flight at
/// once; the tokens that two of a block's warps read are in the first-level cache.
template <class T>
__global__ void __launch_bounds__(kThreads, kForwardResident<T>)
    forward(const T* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias, T* __restrict__ out,
            int tokens, int D, int stride) {
  constexpr int kBefore = kTaps - 1;
  const int channel = (blockIdx.x * 32 + threadIdx.x % 32) * kChannels;
  if (channel >= D) return;
  const int begin = (blockIdx.y * (kThreads / 32) + threadIdx.x / 32) * kForwardTokens;
  const std::int64_t row = std::int64_t{blockIdx.z} * tokens + begin;
  x += row * stride + channel;
  out += row * D + channel;
  Packed<T, kChannels> inputs[kBefore + kForwardTokens];
#pragma unroll
  for (int i = 0; i < kBefore + kForwardTokens; ++i) {
    const int t = begin + i - kBefore;
    inputs[i] =
        t >= 0 && t < tokens ? load_packed<kChannels>(x + std::int64_t{i - kBefore} * stride) : Packed<T, kChannels>{};
  }
  const Taps taps(weight, bias, channel);
  float window[kTaps][kChannels] = {};  // window[w] is x_{t − 3 + w}
#pragma unroll
  for (int w = 1; w < kTaps; ++w) unpack(inputs[w - 1], window[w]);
#pragma unroll
  for (int i = 0; i < kForwardTokens; ++i) {
    shift(window);
    unpack(inputs[kBefore + i], window[kTaps - 1]);
    float y[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) y[c] = silu(taps(window, c));
    if (begin + i < tokens) store_packed(out + std::int64_t{i} * D, y);
  }
}

/// p̄ of token t is needed by dx of t − 3 … t: the loop runs three tokens past the tile, whose p̄ count for dx alone.
template <class T>
__global__ void __launch_bounds__(kThreads, kBackwardResident)
    backward(const T* __restrict__ dout, const T* __restrict__ x, const float* __restrict__ weight,
             const float* __restrict__ bias, T* __restrict__ dx, float* __restrict__ partials, int tokens, int D, int stride,
             int dx_stride, int tile) {
  const int channel = (blockIdx.x * kThreads + threadIdx.x) * kChannels;
  if (channel >= D) return;
  const int begin = blockIdx.y * tile, end = min(begin + tile, tokens), last = min(end + kTaps - 1, tokens);
  const std::int64_t row = std::int64_t{blockIdx.z} * tokens;
  x += row * stride + channel;
  dout += row * D + channel;
  dx += row * dx_stride + channel;
  Packed<T, kChannels> next_x[kBatch<T>], next_dout[kBatch<T>];
  load_batch(x, begin, last, stride, next_x);
  load_batch(dout, begin, last, D, next_dout);
  const Taps taps(weight, bias, channel);
  float window[kTaps][kChannels] = {};  // x_{t − 3 + w}
  float ahead[kTaps][kChannels] = {};   // p̄_{t − 3 + w}
  float dweight[kChannels][kTaps] = {}, dbias[kChannels] = {};
  load_before(x, begin, stride, window);
#pragma unroll 1
  for (int batch = begin; batch < end + kTaps - 1; batch += kBatch<T>) {
    Packed<T, kChannels> inputs[kBatch<T>], cotangents[kBatch<T>];
#pragma unroll
    for (int b = 0; b < kBatch<T>; ++b) inputs[b] = next_x[b], cotangents[b] = next_dout[b];
    load_batch(x, batch + kBatch<T>, last, stride, next_x);
    load_batch(dout, batch + kBatch<T>, last, D, next_dout);
#pragma unroll
    for (int b = 0; b < kBatch<T>; ++b) {
      const int t = batch + b;
      shift(window);
      shift(ahead);
      unpack(inputs[b], window[kTaps - 1]);
      unpack(cotangents[b], ahead[kTaps - 1]);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const float dp = ahead[kTaps - 1][c] * silu_derivative(taps(window, c));
        ahead[kTaps - 1][c] = dp;
        const float counted = t < end ? dp : 0.0f;
        dbias[c] += counted;
#pragma unroll
        for (int w = 0; w < kTaps; ++w) dweight[c][w] += counted * window[w][c];
      }
      float dxs[kChannels] = {};  // dx_s = Σ_w weight[w] p̄_{s + 3 − w} with s = t − 3
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
#pragma unroll
        for (int w = 0; w < kTaps; ++w) dxs[c] += taps.weight[c][w] * ahead[kTaps - 1 - w][c];
      }
      const int s = t - (kTaps - 1);
      if (s >= begin && s < end) store_packed(dx + std::int64_t{s} * dx_stride, dxs);
    }
  }
  float* partial = partials + (std::int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * D * (kTaps + 1);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) store_packed(partial + (channel + c) * kTaps, dweight[c]);
  store_packed(partial + D * kTaps + channel, dbias);
}

/// Stores where `there`, without a branch, behind which the compiler would move what leads to `x`.
__device__ inline void store_where(bool there, bf16* to, const float (&x)[kChannels]) {
  const auto four = pack(x, bf16{});
  asm volatile("{.reg .pred p; setp.ne.b32 p, %3, 0; @p st.global.v2.b32 [%0], {%1, %2};}" ::"l"(to), "r"(four.words[0]),
               "r"(four.words[1]), "r"(static_cast<int>(there))
               : "memory");
}

/// What a thread of backward_projected that walks does, for four channels and one of the block's segments. `dx` is the
/// sequence's first row.
template <int kSteps>
__device__ void walk_segment(const Sequence& sequence, int segment, const float* __restrict__ weight,
                             const float* __restrict__ bias, bf16* __restrict__ dx, int dx_stride,
                             float* __restrict__ partials, unsigned ring) {
  const int channel = (blockIdx.x * kWalkThreads + threadIdx.x) / 4 * kChannels;
  const bool active = channel < sequence.D;
  const int first = (blockIdx.y * kSegments + threadIdx.x % kSegments) * segment;
  int left = active ? sequence.tokens - first + kTaps - 1 : 0;  // of the sequence's dx, from the batch at hand on
  dx += std::int64_t{first - (kTaps - 1)} * dx_stride + channel;
  float window[kTaps][kChannels] = {};  // x_{t − 3 + w}
  float ahead[kTaps][kChannels] = {};   // p̄_{t − 3 + w}
  if (active && first < sequence.tokens) load_before(sequence.x + channel, first, sequence.stride, window);
  const ScaledTaps taps(weight, bias, active ? channel : 0);
  BatchWalk<kSteps> walk(ring);
  walk.take_columns(sequence.product, channel, sequence.D, active);
  float dweight[kChannels][kTaps] = {}, dbias[kChannels] = {};
  // p̄ past the segment's end counts for dx alone; past the sequence's end it is zero.
  const auto take = [&](bool begins, auto past_end) {
    Cotangents cotangents;
    walk.next(cotangents);
#pragma unroll
    for (int b = 0; b < kBatchTokens; ++b) {
      if (past_end && b == kTaps - 1) break;
      shift(window);
      shift(ahead);
      unpack(walk.input(b), window[kTaps - 1]);
      float dxs[kChannels];  // dx_s = Σ_w weight[w] p̄_{s + 3 − w} with s = t − 3
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const float dp = taps.cotangent(taps(window, c), cotangents[c / 2][b / 2][c % 2 * 2 + b % 2]);
        ahead[kTaps - 1][c] = dp;
        if (!past_end) {
          dbias[c] += dp;
#pragma unroll
          for (int w = 0; w < kTaps; ++w) dweight[c][w] += dp * window[w][c];
        }
        dxs[c] = -taps.weight[c][0] * dp;
#pragma unroll
        for (int w = 1; w < kTaps; ++w) dxs[c] += -taps.weight[c][w] * ahead[kTaps - 1 - w][c];
      }
      store_where(b < left && !(b < kTaps - 1 && begins), dx + std::int64_t{b} * dx_stride, dxs);
    }
    walk.done();
    dx += std::int64_t{kBatchTokens} * dx_stride;
    left -= kBatchTokens;
  };
#pragma unroll 1
  for (int done = 0; done < segment; done += kBatchTokens) take(done == 0, std::false_type());
  take(false, std::true_type());
  // The sums of the four segments' lanes
  const auto add_lanes = [](float& sum) {
    sum *= kLog2e;
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
  };
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    add_lanes(dbias[c]);
#pragma unroll
    for (int w = 0; w < kTaps; ++w) add_lanes(dweight[c][w]);
  }
  if (threadIdx.x % 4 > 0 || !active) return;
  float* partial = partials + (std::int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * sequence.D * (kTaps + 1);
#pragma unroll
  for (int c = 0; c < kChannels; ++c) store_packed(partial + (channel + c) * kTaps, dweight[c]);
  store_packed(partial + std::int64_t{sequence.D} * kTaps + channel, dbias);
}

/// As `backward`, with the product added to dout on the way. One warpgroup copies, two walk: a warp has 32 channels, and
/// each of its four lanes of four channels walks another quarter of the tile. What bounds it beside memory is the power of
/// its instructions: 28 a channel and token, of which 20 are the arithmetic of the convolution. A walker that copied too
/// stood a fifth of its time where memory takes no more requests.
template <int kSteps>
__global__ void __launch_bounds__(kWalkThreads + kCopyThreads, kProjectedResident)
    backward_projected(const bf16* dout, Product product, const bf16* x, const float* __restrict__ weight,
                       const float* __restrict__ bias, bf16* __restrict__ dx, float* __restrict__ partials, int tokens,
                       int D, int stride, int dx_stride, int segment) {
  extern __shared__ __align__(128) char shared[];
  const unsigned ring = shared_address(shared);
  const std::int64_t row = std::int64_t{blockIdx.z} * tokens;
  product.rows += row * product.width;
  const Sequence sequence{x + row * stride, dout + row * D, product, tokens, D, stride};
  BatchRing<kSteps>::start();
  if (threadIdx.x >= kWalkThreads) {
    shrink_registers<kCopyRegisters>();
    copy_batches<kSteps>(sequence, segment, ring);
  } else {
    grow_registers<kWalkRegisters>();
    walk_segment<kSteps>(sequence, segment, weight, bias, dx + row * dx_stride, dx_stride, partials, ring);
  }
}

/// One thread a (batch, channel), all of time: any W, any width, with history.
template <class T>
__global__ void __launch_bounds__(kThreads) forward_general(const T* x, const float* weight, const float* bias,
                                                            float* history, T* out, int tokens, int D, int stride, int W) {
  const int channel = blockIdx.x * kThreads + threadIdx.x;
  if (channel >= D) return;
  const std::int64_t row = std::int64_t{blockIdx.y} * tokens;
  x += row * stride + channel;
  out += row * D + channel;
  float* past = history ? history + std::int64_t{blockIdx.y} * (W - 1) * D + channel : nullptr;
  float window[kMaxTaps] = {};  // the newest last, in window[kMaxTaps − 1]
#pragma unroll
  for (int k = 1; k < kMaxTaps; ++k) {
    const int kept = k - (kMaxTaps - W) - 1;  // row of history
    if (past && kept >= 0) window[k] = past[std::int64_t{kept} * D];
  }
  for (int t = 0; t < tokens; ++t) {
    float p = bias[channel];
#pragma unroll
    for (int k = 0; k < kMaxTaps; ++k) {
      window[k] = k + 1 < kMaxTaps ? window[k + 1 < kMaxTaps ? k + 1 : 0] : to_float(x[std::int64_t{t} * stride]);
      const int w = k - (kMaxTaps - W);
      if (w >= 0) p += weight[channel * W + w] * window[k];
    }
    out[std::int64_t{t} * D] = from_float<T>(silu(p));
  }
  if (!past) return;
#pragma unroll
  for (int k = 1; k < kMaxTaps; ++k) {
    const int kept = k - (kMaxTaps - W) - 1;
    if (kept >= 0) past[std::int64_t{kept} * D] = window[k];
  }
}

/// One thread a (batch, tile, channel): recomputes each p of the W that a dx needs.
template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_general(const T* dout, const T* x, const float* weight, const float* bias, T* dx, float* partials, int tokens,
                     int D, int stride, int dx_stride, int W, int tile) {
  const int channel = blockIdx.x * kThreads + threadIdx.x;
  if (channel >= D) return;
  const std::int64_t row = std::int64_t{blockIdx.z} * tokens;
  x += row * stride + channel;
  dout += row * D + channel;
  dx += row * dx_stride + channel;
  const int begin = blockIdx.y * tile, end = min(begin + tile, tokens);
  const auto input = [&](int t) { return t >= 0 ? to_float(x[std::int64_t{t} * stride]) : 0.0f; };
  const auto cotangent = [&](int t) {
    float p = bias[channel];
    for (int w = 0; w < W; ++w) p += weight[channel * W + w] * input(t - W + 1 + w);
    return to_float(dout[std::int64_t{t} * D]) * silu_derivative(p);
  };
  float* partial = partials + (std::int64_t{blockIdx.z} * gridDim.y + blockIdx.y) * D * (W + 1);
  float *dweight = partial + channel * W, *dbias = partial + D * W + channel;
  for (int w = 0; w < W; ++w) dweight[w] = 0;
  *dbias = 0;
  for (int t = begin; t < end; ++t) {
    const float dp = cotangent(t);
    for (int w = 0; w < W; ++w) dweight[w] += dp * input(t - W + 1 + w);
    *dbias += dp;
    float sum = 0;
    for (int w = 0; w < W; ++w) {
      const int s = t + W - 1 - w;
      if (s < tokens) sum += weight[channel * W + w] * cotangent(s);
    }
    dx[std::int64_t{t} * dx_stride] = from_float<T>(sum);
  }
}

/// True when the fast kernels may access activations of T and the float32 parameters.
template <class T, class... Activations>
bool is_fast(const Tensor& weight, const Tensor& bias, const Activations&... activations) {
  return weight.size(-1) == kTaps && weight.size(0) % kChannels == 0 && aligned<16>(weight.as<float>(), bias.as<float>()) &&
         (... && (Matrix(activations).row_stride % kChannels == 0)) &&
         aligned<alignof(Packed<T, kChannels>)>(pointer<const T>(activations)...);
}

/// Tokens a tile of backward, a multiple of `unit`, so that `columns` blocks a tile of each of B sequences fill the device
/// evenly: the fewest waves of `resident` blocks, times the tokens that a block walks, and what tiles cost beside.
int backward_tile(int tokens, int columns, int B, std::int64_t resident, int unit, const TileCost& beside) {
  constexpr int kShortest = 16, kMostWaves = 8;
  double least = 0;
  int best = tokens;
  for (int tiles = 1; tiles <= ceil_div(tokens, kShortest); ++tiles) {
    const int tile = ceil_div(ceil_div(tokens, tiles), unit) * unit;
    const std::int64_t blocks = std::int64_t{columns} * B * ceil_div(tokens, tile);
    if (tiles > 1 && blocks > kMostWaves * resident) break;
    const std::int64_t waves = (blocks + resident - 1) / resident;
    const double cost = static_cast<double>(waves * (tile + beside.start)) + beside.spread * tile;
    if (tiles == 1 || cost < least) least = cost, best = tile;
  }
  return best;
}

/// True when backward_projected may copy the rows of x, dout and the projection 16 bytes at a time, and the product has
/// few enough of them for a thread's registers.
bool is_fast(const OutputProjection& projection, const Matrix& x, const Tensor& dout) {
  constexpr std::int64_t kMost = 192;
  const std::int64_t K = projection.dy.size(-1);
  return projection.dy.dtype() == DType::bf16 && K % kVector == 0 && K <= kMost && dout.size(-1) % kVector == 0 &&
         x.row_stride % kVector == 0 && aligned<16>(pointer<bf16>(projection.dy), pointer<bf16>(x), pointer<bf16>(dout)) &&
         aligned<8>(pointer<bf16>(projection.weight));
}

/// Calls launch(kernel, bytes of shared memory) with backward_projected for a product of K or more columns: those of d_model
/// 768, 1024, 1536, 2048 and 2560.
template <class Launch>
void with_projected_kernel(std::int64_t K, const Launch& launch) {
  const auto use = [&](auto steps) {
    const auto kernel = backward_projected<steps>;
    constexpr int kBytes = BatchRing<steps>::kBytes;
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    launch(kernel, kBytes);
  };
  if (K <= 80) return use(std::integral_constant<int, 5>());
  if (K <= 96) return use(std::integral_constant<int, 6>());
  if (K <= 128) return use(std::integral_constant<int, 8>());
  if (K <= 160) return use(std::integral_constant<int, 10>());
  use(std::integral_constant<int, 12>());
}

}  // namespace

void causal_conv_silu_forward(Stream& stream, const Matrix& x, const Tensor& weight, const Tensor& bias,
                              const Tensor& history, const Tensor& out) {
  const NativeStream& native = cuda::native(stream);
  const int B = static_cast<int>(out.size(0)), tokens = static_cast<int>(out.size(1)), D = static_cast<int>(out.size(2));
  const int W = static_cast<int>(weight.size(-1)), stride = static_cast<int>(x.row_stride);
  if (out.numel() == 0) return;
  with_compute_type(out.dtype(), [&](auto element) {
    using T = decltype(element);
    if (!history && is_fast<T>(weight, bias, x, out)) {
      const dim3 grid(ceil_div(D, 32 * kChannels), ceil_div(tokens, kThreads / 32 * kForwardTokens), B);
      forward<T><<<grid, kThreads, 0, native.stream>>>(pointer<const T>(x), weight.as<float>(), bias.as<float>(),
                                                       pointer<T>(out), tokens, D, stride);
    } else {
      forward_general<T><<<dim3(ceil_div(D, kThreads), B), kThreads, 0, native.stream>>>(
          pointer<const T>(x), weight.as<float>(), bias.as<float>(), history ? history.as<float>() : nullptr,
          pointer<T>(out), tokens, D, stride, W);
    }
    CUDA_CHECK(cudaGetLastError());
  });
}

void causal_conv_silu_backward(Stream& stream, const Tensor& dout, const OutputProjection& projection, const Matrix& x,
                               const Tensor& weight, const Tensor& bias, const Matrix& dx, const Tensor& dweight,
                               const Tensor& dbias) {
  const NativeStream& native = cuda::native(stream);
  const int B = static_cast<int>(dout.size(0)), tokens = static_cast<int>(dout.size(1)), D = static_cast<int>(dout.size(2));
  const int W = static_cast<int>(weight.size(-1)), stride = static_cast<int>(x.row_stride),
            dx_stride = static_cast<int>(dx.row_stride);
  if (dout.numel() == 0) return;
  const bool fast =
      dout.dtype() == DType::bf16 ? is_fast<bf16>(weight, bias, dout, x, dx) : is_fast<float>(weight, bias, dout, x, dx);
  const bool fused = projection.dy && fast && is_fast(projection, x, dout);
  if (projection.dy && !fused) {
    cuda::matmul(stream, projection.dy, Transpose::no, projection.weight, Transpose::no, dout, Accumulate::add);
  }
  const int K = fused ? static_cast<int>(projection.dy.size(-1)) : 0;
  const int columns = ceil_div(D, fused ? kWalkThreads : kThreads * kChannels);
  const int unit = fused ? kBatchRows : 1;  // whole batches
  const TileCost beside = fused ? projected_cost(K) : kBackwardCost;
  const int resident = native.multiprocessors * (fused ? kProjectedResident : kBackwardResident);
  const auto part_bytes = static_cast<std::int64_t>(sizeof(float)) * D * (W + 1);
  const auto most_tiles = static_cast<int>(static_cast<std::int64_t>(native.workspace_bytes) / (part_bytes * B));
  require(most_tiles > 0, "causal_conv_silu_backward: batch × width is too large");
  const int wanted = std::max(backward_tile(tokens, columns, B, resident, unit, beside), ceil_div(tokens, most_tiles));
  const int tile = ceil_div(wanted, unit) * unit, tiles = ceil_div(tokens, tile);
  auto* partials = static_cast<float*>(native.workspace);
  if (fused) {
    const Product product{pointer<const bf16>(projection.dy), pointer<const bf16>(projection.weight), K};
    with_projected_kernel(K, [&](auto kernel, int shared) {
      kernel<<<dim3(columns, tiles, B), kWalkThreads + kCopyThreads, shared, native.stream>>>(
          pointer<const bf16>(dout), product, pointer<const bf16>(x), weight.as<float>(), bias.as<float>(),
          pointer<bf16>(dx), partials, tokens, D, stride, dx_stride, tile / kSegments);
    });
    CUDA_CHECK(cudaGetLastError());
  } else {
    with_compute_type(dout.dtype(), [&](auto element) {
      using T = decltype(element);
      const auto kernel = [&](auto run, int width, auto... last) {
        run<<<dim3(width, tiles, B), kThreads, 0, native.stream>>>(pointer<const T>(dout), pointer<const T>(x),
                                                                   weight.as<float>(), bias.as<float>(), pointer<T>(dx),
                                                                   partials, tokens, D, stride, dx_stride, last...);
        CUDA_CHECK(cudaGetLastError());
      };
      if (fast) {
        kernel(backward<T>, columns, tile);
      } else {
        kernel(backward_general<T>, ceil_div(D, kThreads), W, tile);
      }
    });
  }
  add_rows(native, partials, tiles * B, D * (W + 1), dweight.as<float>(), D * W, dbias.as<float>());
}

}  // namespace dm::cuda
