// What the convolution's backward has on its way: its inputs in batches, and with them the product that is x_proj's part of
// its cotangent, done by tensor cores.
//
// Apart, the product reads and writes [B·T, D] to add to what the scan left there, and the convolution reads it again: five
// passes over device memory where this kernel has three. K = R + 2N is short, so the product is done four tokens at a time
// between the loads and the convolution of these tokens.
#pragma once

#include "kernels/cuda/causal_conv_common.cuh"

namespace dm::cuda::conv {

inline constexpr int kSegments = 4;     // of time that a warp walks side by side
inline constexpr int kBatchTokens = 4;  // of each, at a time

/// Cotangents of the convolution's output that are still a product: rows [B·T, 16 · steps] times columns [16 · steps, D].
struct Product {
  const bf16* rows;
  const bf16* columns;
  int steps;
};

/// One sequence, from its first token on: x and dout [tokens, D], 16-byte aligned, x with rows `stride` apart.
struct Sequence {
  const bf16 *x, *dout;
  Product product;
  int tokens, D, stride;
};

/// Batch i of a block is four tokens, from 4i on, of each of four segments of time, and 128 channels. Shared memory holds a
/// ring of them: rows of x and of dout, read from device memory 256 bytes at a time and zero outside of the sequence or of
/// its channels, and the rows of the product. While one is at work the others are on their way. A lane walks one segment
/// and four channels.
///
/// The product of a warp's 32 channels: a row of the first operand is a channel and a column of the second a token, so that
/// the lane that walks a segment gets the sums of its own four channels and tokens: with lane = 4g + q, rows g and g + 8 of
/// operand m are the channels 4g + 2m and 4g + 2m + 1, columns 2q and 2q + 1 of result j the tokens 2j and 2j + 1 of
/// segment q. The columns lie in shared memory as the lanes read them. kSteps are the product's steps, or 0 where only the
/// call knows them; the compiler moves loads of operands ahead of products where it knows.
template <int kSteps>
class BatchWalk {
 public:
  static std::size_t bytes(int steps) {
    return static_cast<std::size_t>(steps) * kThreads * 32 + std::size_t{kSlots} * slot_bytes(steps);
  }

  /// For segments of `segment` tokens, the first of them at blockIdx.y · 4 · segment, and channels from 128 · blockIdx.x on.
  /// Starts the copies of all batches but one of the ring.
  __device__ BatchWalk(const Sequence& sequence, int segment, char* shared)
      : valid_(sequence.dout),
        steps_of_call_(sequence.product.steps),
        D_(sequence.D),
        stride_(sequence.stride),
        columns_(shared_address(shared)) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const auto first = [&](int q) { return static_cast<std::int64_t>(blockIdx.y * kSegments + q) * segment; };
    const unsigned ring = columns_ + steps() * kThreads * 32;
    // Of x and dout a thread copies 16 bytes of token `token` and of the one after the next, of segment q.
    const int q = threadIdx.x / 16 % 4, token = threadIdx.x / 64, vector = threadIdx.x % 16;
    const int channel = blockIdx.x * kThreads + vector * kVector;
    const std::int64_t t = first(q) + token;
    left_ = channel < D_ ? sequence.tokens - static_cast<int>(t) : 0;
    x_ = sequence.x + t * stride_ + channel;
    dout_ = sequence.dout + t * D_ + channel;
    to_ = ring + (token * kSegments + q) * kPitch + vector * 16;
    from_ = ring + lane % 4 * kPitch + warp * 64 + lane / 4 * 8;
    // Of the product's rows it copies every eighth 16 bytes of another token.
    const int row_token = lane / 4 % 4, row_vector = threadIdx.x / 16;
    const std::int64_t row_t = first(lane % 4) + row_token;
    rows_left_ = sequence.tokens - static_cast<int>(row_t);
    rows_ = sequence.product.rows + row_t * steps() * 16 + row_vector * 8;
    rows_to_ = ring + 2 * kTensor + place(lane % 4, row_token) * pitch(steps()) + row_vector * 16;
    rows_from_ = ring + 2 * kTensor + place(lane % 8 / 2, lane / 16 * 2 + lane % 2) * pitch(steps()) + lane / 8 % 2 * 16;
    for (int i = 0; i + 1 < kSlots; ++i) copy_batch(i * slot_bytes(steps()));
  }

  /// Packs the columns of the lane's four channels, which begin at `columns`. Zeros when not `active`.
  __device__ void take_columns(const bf16* columns, bool active) {
    columns += threadIdx.x % 4 * 2 * D_;
    unsigned to = operands();
#pragma unroll 2
    for (int step = 0; step < steps(); ++step, columns += 16 * D_, to += 1024) {
      Packed<bf16, kChannels> k[4] = {};  // 2q, 2q + 1, 2q + 8, 2q + 9
      if (active) {
        k[0] = load_packed<kChannels>(columns), k[1] = load_packed<kChannels>(columns + D_);
        k[2] = load_packed<kChannels>(columns + 8 * D_), k[3] = load_packed<kChannels>(columns + 9 * D_);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        asm volatile(
            "st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to + m * 512),
            "r"(__byte_perm(k[0].words[m], k[1].words[m], 0x5410)), "r"(__byte_perm(k[0].words[m], k[1].words[m], 0x7632)),
            "r"(__byte_perm(k[2].words[m], k[3].words[m], 0x5410)), "r"(__byte_perm(k[2].words[m], k[3].words[m], 0x7632))
            : "memory");
      }
    }
  }

  /// The lane's tokens of the next batch: x, and dout with the product. All threads together.
  __device__ void next(Packed<bf16, kChannels> (&x)[kBatchTokens], float (&cotangents)[kBatchTokens][kChannels]) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kSlots - 2) : "memory");
    __syncthreads();  // the batch is there, and the one before is read
    const unsigned last = slot_bytes(steps()) * (kSlots - 1);
    copy_batch(slot_ == 0 ? last : slot_ - slot_bytes(steps()));
#pragma unroll
    for (int t = 0; t < kBatchTokens; ++t) {
      const unsigned at = from_ + slot_ + t * kSegments * kPitch;
      x[t] = load_shared(at);
      unpack(load_shared(at + kTensor), cotangents[t]);
    }
    add_product(cotangents);
    slot_ = slot_ == last ? 0 : slot_ + slot_bytes(steps());
  }

 private:
  static constexpr int kSlots = 2;

  __device__ int steps() const {
    return kSteps > 0 ? kSteps : steps_of_call_;
  }
  /// Bytes from token to token of a batch: four neighbours lie in different banks. Row 4 · token + q is of segment q.
  static constexpr int kPitch = kThreads * 2 + 32;
  static constexpr int kTensor = kBatchTokens * kSegments * kPitch;

  /// Of the product's rows: a row and 16 bytes, with which eight neighbouring rows lie in different banks.
  __host__ __device__ static int pitch(int steps) {
    return steps * 32 + 16;
  }
  __host__ __device__ static int slot_bytes(int steps) {
    return 2 * kTensor + 16 * pitch(steps);
  }
  /// Where a slot keeps the product's row of a token of segment q: the eight that one matrix load takes together.
  __device__ static int place(int q, int token) {
    return token / 2 * 8 + q * 2 + token % 2;
  }
  __device__ static Packed<bf16, kChannels> load_shared(unsigned at) {
    Packed<bf16, kChannels> four;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(four.words[0]), "=r"(four.words[1]) : "r"(at));
    return four;
  }
  __device__ unsigned operands() const {
    return columns_ + threadIdx.x / 32 * steps() * 1024 + threadIdx.x % 32 * 16;
  }

  __device__ void add_product(float (&sums)[kBatchTokens][kChannels]) const {
    unsigned at = rows_from_ + slot_, operand = operands();
#pragma unroll(kSteps > 0 ? kSteps : 2)
    for (int step = 0; step < steps(); ++step, at += 32, operand += 1024) {
      unsigned tokens[4], channels[2][4];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(tokens[0]), "=r"(tokens[1]), "=r"(tokens[2]), "=r"(tokens[3])
                   : "r"(at));
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(channels[m][0]), "=r"(channels[m][1]), "=r"(channels[m][2]), "=r"(channels[m][3])
                     : "r"(operand + m * 512));
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const unsigned(&a)[4] = channels[m];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
              "%2, %3};"
              : "+f"(sums[2 * j][2 * m]), "+f"(sums[2 * j + 1][2 * m]), "+f"(sums[2 * j][2 * m + 1]),
                "+f"(sums[2 * j + 1][2 * m + 1])
              : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(tokens[2 * j]), "r"(tokens[2 * j + 1]));
        }
      }
    }
  }

  /// Copies 16 bytes, or zeros.
  __device__ void copy(unsigned to, const bf16* from, bool there) const {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(there ? from : valid_), "r"(there ? 16 : 0)
                 : "memory");
  }
  /// Starts the copies of the next batch into a slot.
  __device__ void copy_batch(unsigned slot) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const unsigned to = to_ + slot + i * 2 * kSegments * kPitch;
      copy(to, x_ + std::int64_t{2 * i} * stride_, left_ > 2 * i);
      copy(to + kTensor, dout_ + std::int64_t{2 * i} * D_, left_ > 2 * i);
    }
#pragma unroll 1
    for (int vector = threadIdx.x / 16, at = 0; vector < steps() * 2; vector += 8, at += 8) {
      copy(rows_to_ + slot + at * 16, rows_ + at * 8, rows_left_ > 0);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    x_ += std::int64_t{kBatchTokens} * stride_, dout_ += std::int64_t{kBatchTokens} * D_, left_ -= kBatchTokens;
    rows_ += kBatchTokens * steps() * 16, rows_left_ -= kBatchTokens;
  }

  const bf16* valid_;  // an address for copies that bring zeros
  int steps_of_call_, D_, stride_;
  unsigned columns_;               // in shared memory, as all that is unsigned
  const bf16 *x_, *dout_, *rows_;  // where the thread copies from
  int left_, rows_left_;           // tokens of the sequence from there on
  unsigned to_, rows_to_;          // where it copies to, and
  unsigned from_, rows_from_;      // where the lane reads, in the ring's first slot
  unsigned slot_ = 0;              // the slot at hand, in bytes
};

}  // namespace dm::cuda::conv
