// What the convolution's backward has on its way: its inputs in batches, and with them the product that is x_proj's part of
// its cotangent, done by tensor cores.
//
// Apart, the product reads and writes [B·T, D] to add to what the scan left there, and the convolution reads it again: five
// passes over device memory where this kernel has three. K = R + 2N is short, so the product is done eight tokens at a time
// between the loads and the convolution of these tokens.
#pragma once

#include "kernels/cuda/causal_conv_common.cuh"

namespace dm::cuda::conv {

inline constexpr int kWalkThreads = 256;                     // of a block, which has as many channels
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
/// a ring of them: rows of x and of dout, read from device memory 512 bytes at a time and zero outside of the sequence or of
/// its channels, and the rows of the product. While one is at work the others are on their way. A lane walks one segment
/// and four channels.
///
/// The product of four warps' 128 channels is one wgmma a step of 16 columns and half of their channels: a row of the first
/// operand is a channel and a column of the second a token, so that the lane that walks a segment gets the sums of its own
/// channels and tokens: with lane = 4g + q, rows g and g + 8 of a warp's part of operand m are the channels 4g + 2m and
/// 4g + 2m + 1, columns 8j + 2q and 8j + 2q + 1 the tokens 2j and 2j + 1 of segment q. The first operand stays in registers;
/// the second is read from the ring, where eight rows of 16 bytes are neighbours. A narrower product than 16 · kSteps is one
/// with zeros.
template <int kSteps>
class BatchWalk {
  static constexpr int kSlots = 3;
  /// Bytes from row to row of x and dout: four neighbours lie in different banks. Row 4 · token + q is of segment q.
  static constexpr int kPitch = kWalkThreads * 2 + 32, kVectors = kWalkThreads / kVector;
  static constexpr int kTensor = kBatchRows * kPitch;
  /// The product's rows: step by step, of each first 8 and then the other 8 columns, row 8j + 2q + t of token 2j + t of
  /// segment q.
  static constexpr int kStepBytes = kBatchRows * 32;
  static constexpr unsigned kSlot = 2 * kTensor + kSteps * kStepBytes;

 public:
  static constexpr int kBytes = kSlots * kSlot;

  /// For segments of `segment` tokens, the first of them at blockIdx.y · 4 · segment, and channels from 256 · blockIdx.x on.
  /// Starts the copies of all batches but one of the ring.
  __device__ BatchWalk(const Sequence& sequence, int segment, char* shared)
      : D_(sequence.D), stride_(sequence.stride), width_(sequence.product.width) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const auto first = [&](int q) { return static_cast<std::int64_t>(blockIdx.y * kSegments + q) * segment; };
    // What is left of the sequence at a segment's start.
    const auto left = [&](int q) { return sequence.tokens - static_cast<int>(first(q)); };
    const unsigned ring = shared_address(shared);
    // Of x and dout a thread copies 16 bytes of every second token of segment q, until three tokens past it.
    const int q = threadIdx.x / kVectors % 4, token = threadIdx.x / kVectors / 4, vector = threadIdx.x % kVectors;
    const int channel = blockIdx.x * kWalkThreads + vector * kVector;
    const std::int64_t t = first(q) + token;
    const int bound = min(left(q), segment + kTaps - 1);
    left_ = channel < D_ ? bound - token : 0;
    whole_ = static_cast<int>(blockIdx.x + 1) * kWalkThreads <= D_ && width_ == kSteps * 16
                 ? min(segment, left(kSegments - 1))
                 : 0;
    x_ = sequence.x + t * stride_ + channel;
    dout_ = sequence.dout + t * D_ + channel;
    to_ = ring + (token * kSegments + q) * kPitch + vector * 16;
    from_ = ring + lane % 4 * kPitch + warp * 64 + lane / 4 * 8;
    // Of the product's rows: lanes 0 … 15 the first, the others the second 16 bytes of a step of the same 16 rows.
    const int row = lane % 16, row_q = row / 2 % 4, row_token = warp % 2 * 4 + row / 8 * 2 + row % 2;
    const std::int64_t row_t = first(row_q) + row_token;
    rows_left_ = min(left(row_q), segment + kTaps - 1) - row_token;
    rows_ = sequence.product.rows + row_t * width_ + warp / 2 * 16 + lane / 16 * 8;
    rows_to_ = ring + 2 * kTensor + warp / 2 * kStepBytes + lane / 16 * 512 + warp % 2 * 256 + row * 16;
    rows_width_ = width_ - (warp / 2 * 16 + lane / 16 * 8);
    rows_from_ = ring + 2 * kTensor;
    for (int i = 0; i + 1 < kSlots; ++i) copy_batch(i * kSlot);
    slot_ = (kSlots - 1) * kSlot;
  }

  /// Takes the columns of the lane's four channels, which begin at `columns`. Zeros when not `active`.
  __device__ void take_columns(const bf16* columns, bool active) {
    const int first = threadIdx.x % 4 * 2;
    columns += std::int64_t{first} * D_;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Packed<bf16, kChannels> k[4] = {};  // 2q, 2q + 1, 2q + 8, 2q + 9
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = step * 16 + i / 2 * 8 + i % 2;
        if (active && first + at < width_) k[i] = load_packed<kChannels>(columns + std::int64_t{at} * D_);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        unsigned(&a)[4] = columns_[step][m];
        a[0] = __byte_perm(k[0].words[m], k[1].words[m], 0x5410), a[1] = __byte_perm(k[0].words[m], k[1].words[m], 0x7632);
        a[2] = __byte_perm(k[2].words[m], k[3].words[m], 0x5410), a[3] = __byte_perm(k[2].words[m], k[3].words[m], 0x7632);
      }
    }
  }

  /// Goes to the next batch: dout with the product. All threads together.
  __device__ void next(Cotangents& cotangents) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kSlots - 2) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // tensor cores read what was copied
    __syncthreads();                                              // the batch is there, and the one before is read
    copy_batch(slot_);
    slot_ = slot_ == (kSlots - 1) * kSlot ? 0 : slot_ + kSlot;
#pragma unroll
    for (int t = 0; t < kBatchTokens; ++t) {
      float four[kChannels];
      unpack(load_shared(from_ + slot_ + kTensor + t * kSegments * kPitch), four);
#pragma unroll
      for (int c = 0; c < kChannels; ++c) cotangents[c / 2][t / 2][c % 2 * 2 + t % 2] = four[c];
    }
    add_product(cotangents);
  }
  /// x of token t of the batch.
  __device__ Packed<bf16, kChannels> input(int t) const {
    return load_shared(from_ + slot_ + t * kSegments * kPitch);
  }

 private:
  __device__ static Packed<bf16, kChannels> load_shared(unsigned at) {
    Packed<bf16, kChannels> four;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(four.words[0]), "=r"(four.words[1]) : "r"(at));
    return four;
  }

  __device__ void add_product(Cotangents& sums) const {
    // How wgmma finds 16 columns of 32 rows: where, and how many bytes to the other 8 columns and to the next 8 rows.
    const std::uint64_t rows =
        std::uint64_t{(rows_from_ + slot_) >> 4} | std::uint64_t{kStepBytes / 2 >> 4} << 16 | std::uint64_t{128 >> 4} << 32;
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
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(rows + step * (kStepBytes >> 4)));
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

  __device__ static void copy(unsigned to, const bf16* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  }
  /// Starts the copies of the next batch into a slot.
  __device__ void copy_batch(unsigned slot) {
    constexpr int kWarps = kWalkThreads / 32;
    const auto copy_all = [&](auto copy_one) {
#pragma unroll
      for (int t = 0; t < kBatchTokens; t += kWarps / kSegments) {
        const unsigned to = to_ + slot + t * kSegments * kPitch;
        copy_one(to, x_ + std::int64_t{t} * stride_, left_ > t);
        copy_one(to + kTensor, dout_ + std::int64_t{t} * D_, left_ > t);
      }
#pragma unroll
      for (int step = 0; step < kSteps; step += kWarps / 2) {
        if (step + kWarps / 2 > kSteps && threadIdx.x / 32 + step * 2 >= 2 * kSteps) break;
        copy_one(rows_to_ + slot + step * kStepBytes, rows_ + step * 16, rows_left_ > 0 && rows_width_ > step * 16);
      }
    };
    if (whole_ >= kBatchTokens) {
      copy_all([](unsigned to, const bf16* from, bool) { copy(to, from); });
    } else {
      copy_all([](unsigned to, const bf16* from, bool there) {
        if (there) {
          copy(to, from);
        } else {
          asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
        }
      });
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    x_ += std::int64_t{kBatchTokens} * stride_, dout_ += std::int64_t{kBatchTokens} * D_, left_ -= kBatchTokens;
    rows_ += kBatchTokens * width_, rows_left_ -= kBatchTokens, whole_ -= kBatchTokens;
  }

  int D_, stride_, width_;
  unsigned columns_[kSteps][2][4];     // of the product, as operands
  const bf16 *x_, *dout_, *rows_;      // where the thread copies from
  int left_, rows_left_, rows_width_;  // tokens that it has from there on, columns of the product
  int whole_;                          // tokens from there on that all threads have
  unsigned to_, rows_to_;              // where it copies to in the ring's first slot,
  unsigned from_, rows_from_;          // and where the lane and the tensor cores read
  unsigned slot_;                      // the slot at hand, in bytes
};

}  // namespace dm::cuda::conv
