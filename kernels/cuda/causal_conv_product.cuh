// What the convolution's backward has on its way: its inputs in batches, and with them the product that is x_proj's part of
// its cotangent, done by tensor cores.
//
// Apart, the product reads and writes [B·T, D] to add to what the scan left there, and the convolution reads it again: five
// passes over device memory where this kernel has three. K = R + 2N is short, so the product is done eight tokens at a time
// between the loads and the convolution of these tokens.
#pragma once

#include "kernels/cuda/causal_conv_common.cuh"
#include "kernels/cuda/warp_barrier.cuh"

namespace dm::cuda::conv {

inline constexpr int kWalkThreads = 256;                     // of a block, which has as many channels,
inline constexpr int kCopyThreads = 128;                     // and behind them those that copy
inline constexpr int kSegments = 4;                          // of time that a warp walks side by side
inline constexpr int kBatchTokens = 8;                       // of each, at a time
inline constexpr int kBatchRows = kSegments * kBatchTokens;  // tokens of a block, at a time

/// Cotangents of the convolution's output that are still a product: rows [B·T, width] times columns [width, D].
struct Product {
  const bf16* rows;
  const bf16* columns;
  int width;
};

/// One sequence, from its first token on: x and dout [tokens, D], 16-byte aligned, x with rows `stride` apart.
struct Sequence {
  const bf16 *x, *dout;
  Product product;
  int tokens, D, stride;
};

/// A batch's cotangents as a lane gets them from the tensor cores: of channel 2m + c and token 2j + t, [m][j][2c + t].
using Cotangents = float[2][kBatchTokens / 2][4];

/// Batch i of a block is eight tokens, from 8i on, of each of four segments of time, and 256 channels. Shared memory holds
/// a ring of them: rows of x and of dout, zero outside of the sequence or of its channels, and the rows of the product. One
/// warpgroup fills it as far ahead as there are slots, and waits where memory does; two others walk. These do not walk in
/// step, so that one multiplies while the other convolves.
template <int kSteps>
struct BatchRing {
  static constexpr int kSlots = 4;
  /// Bytes from row to row of x and dout: four neighbours lie in different banks. Row 4 · token + q is of segment q.
  static constexpr int kPitch = kWalkThreads * 2 + 32;
  static constexpr int kTensor = kBatchRows * kPitch;
  /// The product's rows: step by step, of each first 8 and then the other 8 columns, row 8j + 2q + t of token 2j + t of
  /// segment q.
  static constexpr int kStepBytes = kBatchRows * 32, kRows = 2 * kTensor;
  static constexpr unsigned kSlot = kRows + kSteps * kStepBytes;
  static constexpr int kBytes = kSlots * kSlot;

  struct Barriers {
    WarpBarrier filled, read;
  };
  __device__ static Barriers* barriers() {
    __shared__ Barriers all[kSlots];
    return all;
  }
  /// By all threads, before anything else.
  __device__ static void start() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kSlots; ++i) {
        barriers()[i].filled.start(kCopyThreads / 32), barriers()[i].read.start(kWalkThreads / 32);
      }
    }
    __syncthreads();
  }

  /// A thread's way around the ring.
  struct Place {
    unsigned slot = 0, phase = 0;

    __device__ void advance() {
      if (++slot == kSlots) slot = 0, phase ^= 1;
    }
    __device__ Barriers& barriers() const { return BatchRing::barriers()[slot]; }
    /// Where the slot begins, in bytes from the first.
    __device__ unsigned begin() const { return slot * kSlot; }
  };
};

/// Copies the batches of segments of `segment` tokens and three tokens more, the first of them at blockIdx.y · 4 · segment,
/// of channels from 256 · blockIdx.x on, into the ring at `ring`. By the threads that copy: a warp reads x and dout of one
/// segment, a row of 512 bytes at a time.
template <int kSteps>
__device__ void copy_batches(const Sequence& sequence, int segment, unsigned ring) {
  using Ring = BatchRing<kSteps>;
  static_assert(kCopyThreads / 32 == kSegments);
  const int lane = threadIdx.x % 32, warp = threadIdx.x % kCopyThreads / 32, width = sequence.product.width;
  const auto first = [&](int q) { return static_cast<std::int64_t>(blockIdx.y * kSegments + q) * segment; };
  // Tokens that a segment and the three behind it have in the sequence.
  const auto tokens = [&](int q) { return min(sequence.tokens - static_cast<int>(first(q)), segment + kTaps - 1); };
  const int channel = static_cast<int>(blockIdx.x) * kWalkThreads + lane * kVector;
  const bf16* x = sequence.x + first(warp) * sequence.stride + channel;
  const bf16* dout = sequence.dout + first(warp) * sequence.D + channel;
  int left = channel < sequence.D ? tokens(warp) : 0;
  const unsigned to = ring + warp * Ring::kPitch + lane * 16;
  // Of the product's rows, lanes 0 … 15 copy the first, the others the second 16 bytes of every second step of 16 rows.
  const int row = lane % 16, q = row / 2 % kSegments, token = warp % 2 * 4 + row / 8 * 2 + row % 2;
  const int column = warp / 2 * 16 + lane / 16 * 8;
  const bf16* rows = sequence.product.rows + (first(q) + token) * width + column;
  int rows_left = tokens(q) - token;
  const unsigned rows_to = ring + Ring::kRows + warp / 2 * Ring::kStepBytes + lane / 16 * 512 + warp % 2 * 256 + row * 16;
  const auto copy = [](unsigned to, const bf16* from, bool there) {  // or write zeros
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
  };
  typename Ring::Place at;
#pragma unroll 1
  for (int done = 0; done < segment + kTaps - 1; done += kBatchTokens) {
    at.barriers().read.wait(at.phase ^ 1);
#pragma unroll
    for (int t = 0; t < kBatchTokens; ++t) {
      const unsigned row_to = to + at.begin() + t * kSegments * Ring::kPitch;
      copy(row_to, x + std::int64_t{t} * sequence.stride, left > t);
      copy(row_to + Ring::kTensor, dout + std::int64_t{t} * sequence.D, left > t);
    }
#pragma unroll
    for (int step = 0; step < kSteps; step += 2) {
      if (step + 1 == kSteps && warp >= 2) break;
      copy(rows_to + at.begin() + step * Ring::kStepBytes, rows + step * 16, rows_left > 0 && column + step * 16 < width);
    }
    at.barriers().filled.arrive_behind_copies();
    at.advance();
    x += std::int64_t{kBatchTokens} * sequence.stride, dout += std::int64_t{kBatchTokens} * sequence.D;
    rows += kBatchTokens * width, left -= kBatchTokens, rows_left -= kBatchTokens;
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
}

/// How a lane walks one segment and four channels through the ring.
///
/// The product of four warps' 128 channels is one wgmma a step of 16 columns and half of their channels: a row of the first
/// operand is a channel and a column of the second a token, so that the lane that walks a segment gets the sums of its own
/// channels and tokens: with lane = 4g + q, rows g and g + 8 of a warp's part of operand m are the channels 4g + 2m and
/// 4g + 2m + 1, columns 8j + 2q and 8j + 2q + 1 the tokens 2j and 2j + 1 of segment q. The first operand stays in registers;
/// the second is read from the ring, where eight rows of 16 bytes are neighbours. A narrower product than 16 · kSteps is one
/// with zeros.
template <int kSteps>
class BatchWalk {
  using Ring = BatchRing<kSteps>;

 public:
  __device__ explicit BatchWalk(unsigned ring)
      : ring_(ring), from_(ring + threadIdx.x % 4 * Ring::kPitch + threadIdx.x / 4 * 8) {}

  /// Takes the columns of the lane's four channels, the first of them `channel` of D. Zeros when not `active`.
  __device__ void take_columns(const Product& product, int channel, int D, bool active) {
    const int first = threadIdx.x % 4 * 2;
    const bf16* columns = product.columns + std::int64_t{first} * D + channel;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Packed<bf16, kChannels> k[4] = {};  // 2q, 2q + 1, 2q + 8, 2q + 9
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = step * 16 + i / 2 * 8 + i % 2;
        if (active && first + at < product.width) k[i] = load_packed<kChannels>(columns + std::int64_t{at} * D);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        unsigned(&a)[4] = columns_[step][m];
        a[0] = __byte_perm(k[0].words[m], k[1].words[m], 0x5410), a[1] = __byte_perm(k[0].words[m], k[1].words[m], 0x7632);
        a[2] = __byte_perm(k[2].words[m], k[3].words[m], 0x5410), a[3] = __byte_perm(k[2].words[m], k[3].words[m], 0x7632);
      }
    }
  }

  /// Goes to the next batch: dout with the product. Four warps together; done() lies between two calls.
  __device__ void next(Cotangents& cotangents) {
    at_.barriers().filled.wait(at_.phase);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // tensor cores read what was copied
#pragma unroll
    for (int t = 0; t < kBatchTokens; ++t) {
      float four[kChannels];
      unpack(load_shared(Ring::kTensor, t), four);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) cotangents[c / 2][t / 2][c % 2 * 2 + t % 2] = four[c];
    }
    add_product(cotangents);
  }
  /// x of token t of the batch.
  __device__ Packed<bf16, kChannels> input(int t) const {
    return load_shared(0, t);
  }
  /// The lane reads no more of the batch.
  __device__ void done() {
    at_.barriers().read.arrive();
    at_.advance();
  }

 private:
  /// Of token t of the batch, from the tensor that begins so many bytes into the slot.
  __device__ Packed<bf16, kChannels> load_shared(unsigned tensor, int t) const {
    Packed<bf16, kChannels> four;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                 : "=r"(four.words[0]), "=r"(four.words[1])
                 : "r"(from_ + at_.begin() + tensor + t * kSegments * Ring::kPitch));
    return four;
  }

  __device__ void add_product(Cotangents& sums) const {
    // How wgmma finds 16 columns of 32 rows: where, and how many bytes to the other 8 columns and to the next 8 rows.
    const std::uint64_t rows = std::uint64_t{(ring_ + at_.begin() + Ring::kRows) >> 4} |
                               std::uint64_t{Ring::kStepBytes / 2 >> 4} << 16 | std::uint64_t{128 >> 4} << 32;
    fence(sums);
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        float(&d)[4][4] = sums[m];
        const unsigned(&a)[4] = columns_[step][m];
        asm volatile(
            "{.reg .pred add; setp.ne.b32 add, 1, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, "
            "%13, %14, %15}, {%16, %17, %18, %19}, %20, add, 1, 1, 0;}"
            : "+f"(d[0][0]), "+f"(d[0][1]), "+f"(d[0][2]), "+f"(d[0][3]), "+f"(d[1][0]), "+f"(d[1][1]), "+f"(d[1][2]),
              "+f"(d[1][3]), "+f"(d[2][0]), "+f"(d[2][1]), "+f"(d[2][2]), "+f"(d[2][3]), "+f"(d[3][0]), "+f"(d[3][1]),
              "+f"(d[3][2]), "+f"(d[3][3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(rows + step * (Ring::kStepBytes >> 4)));
      }
    }
    asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
    fence(sums);
  }
  /// Keeps what the compiler does to the sums on one side of this place.
  __device__ static void fence(Cotangents& sums) {
#pragma unroll
    for (int i = 0; i < 2 * kBatchTokens * 2; ++i) {
      asm volatile("" : "+f"(sums[i / (2 * kBatchTokens)][i / 4 % (kBatchTokens / 2)][i % 4])::"memory");
    }
  }

  unsigned columns_[kSteps][2][4];  // of the product, as operands
  unsigned ring_, from_;            // the ring, and where in its first slot the lane reads
  typename Ring::Place at_;
};

}  // namespace dm::cuda::conv
