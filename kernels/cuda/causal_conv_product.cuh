// The product that the convolution's backward does on the way: x_proj's part of its cotangent, by tensor cores into
// registers.
//
// Apart, the product reads and writes [B·T, D] to add to what the scan left there, and the convolution reads it again: five
// passes over device memory where this kernel has three. K = R + 2N is short, so the product is done four tokens at a time
// between the loads and the convolution of these tokens.
#pragma once

#include "kernels/cuda/causal_conv_common.cuh"

namespace dm::cuda::conv {

inline constexpr int kSegments = 4;  // of time that a warp walks side by side

/// Cotangents of the convolution's output that are still a product: rows [B·T, 16 · steps] times columns [16 · steps, D].
struct Product {
  const bf16* rows;
  const bf16* columns;
  int steps;
};

/// The product of a block's tokens and a warp's 32 channels by tensor cores, four tokens of each of four segments of time
/// at once. A row of the first operand is a channel and a column of the second a token, so that the lane that walks a
/// segment gets the sums of its own four channels and tokens: with lane = 4g + q, rows g and g + 8 of operand m are the
/// channels 4g + 2m and 4g + 2m + 1, columns 2q and 2q + 1 of result j the tokens 2j and 2j + 1 of segment q.
///
/// Shared memory holds the columns, packed as the lanes read them, and a ring of batches of rows: those of the next kAhead
/// batches are on their way.
class ProductWalk {
 public:
  static std::size_t bytes(int steps) {
    return static_cast<std::size_t>(steps) * kThreads * 32 + std::size_t{kSlots} * slot_bytes(steps);
  }

  /// Batch i is the four tokens from 4i on of each segment. `from` is the row of the first token of the lane's segment,
  /// where `left` tokens are left of the sequence, negative past its end; rows behind it are taken as zero. Starts the
  /// copies of the first batches.
  __device__ ProductWalk(const Product& product, char* shared, std::int64_t from, int left)
      : valid_(product.rows), steps_(product.steps), columns_(shared) {
    const int token = threadIdx.x / 4 % 4, vector = threadIdx.x / 16, lane = threadIdx.x % 32;
    from_ = product.rows + (from + token) * steps_ * 16 + vector * 8;
    const auto ring = static_cast<unsigned>(__cvta_generic_to_shared(shared + steps_ * kThreads * 32));
    to_ = ring + place(threadIdx.x % 4, token) * pitch(steps_) + vector * 16;
    read_ = ring + place(lane % 8 / 2, lane / 16 * 2 + lane % 2) * pitch(steps_) + lane / 8 % 2 * 16;
    for (int i = 0; i < kAhead; ++i) copy_batch(i * slot_bytes(steps_), left - i * 4);
  }

  /// Packs the columns of the lane's four channels. Zeros when not `active`.
  __device__ void take_columns(const bf16* columns, int D, bool active) {
    columns += threadIdx.x % 4 * 2 * D;
#pragma unroll 3
    for (int step = 0; step < steps_; ++step, columns += 16 * D) {
      Packed<bf16, kChannels> k[4] = {};  // 2q, 2q + 1, 2q + 8, 2q + 9
      if (active) {
        k[0] = load_packed<kChannels>(columns), k[1] = load_packed<kChannels>(columns + D);
        k[2] = load_packed<kChannels>(columns + 8 * D), k[3] = load_packed<kChannels>(columns + 9 * D);
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        uint4 operand;
        operand.x = __byte_perm(k[0].words[m], k[1].words[m], 0x5410);
        operand.y = __byte_perm(k[0].words[m], k[1].words[m], 0x7632);
        operand.z = __byte_perm(k[2].words[m], k[3].words[m], 0x5410);
        operand.w = __byte_perm(k[2].words[m], k[3].words[m], 0x7632);
        operands()[(step * 2 + m) * 32] = operand;
      }
    }
  }

  /// sums[t][c] += the product of the next batch's tokens, at whose first `left` tokens are left. All threads together.
  __device__ void add_next(float (&sums)[4][kChannels], int left) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kAhead - 1) : "memory");
    __syncthreads();  // the batch is there, and the one before is read
    const unsigned last = slot_bytes(steps_) * kAhead, before = slot_ == 0 ? last : slot_ - slot_bytes(steps_);
    copy_batch(before, left - kAhead * 4);
    unsigned at = read_ + slot_;
    const uint4* operand = operands();
#pragma unroll 2
    for (int step = 0; step < steps_; ++step, at += 32, operand += 64) {
      unsigned b[4];
      asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                   : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                   : "r"(at));
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const uint4 a = operand[m * 32];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
              "%2, %3};"
              : "+f"(sums[2 * j][2 * m]), "+f"(sums[2 * j + 1][2 * m]), "+f"(sums[2 * j][2 * m + 1]),
                "+f"(sums[2 * j + 1][2 * m + 1])
              : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b[2 * j]), "r"(b[2 * j + 1]));
        }
      }
    }
    slot_ = slot_ == last ? 0 : slot_ + slot_bytes(steps_);
  }

 private:
  static constexpr int kAhead = 3, kSlots = kAhead + 1;

  /// A row and 16 bytes: eight neighbouring rows lie in different banks.
  __host__ __device__ static int pitch(int steps) {
    return steps * 32 + 16;
  }
  __host__ __device__ static int slot_bytes(int steps) {
    return 16 * pitch(steps);
  }
  /// Where a slot keeps the row of a token of segment q: the eight that one matrix load takes together.
  __device__ static int place(int q, int token) {
    return token / 2 * 8 + q * 2 + token % 2;
  }
  __device__ uint4* operands() const {
    return reinterpret_cast<uint4*>(columns_) + threadIdx.x / 32 * steps_ * 64 + threadIdx.x % 32;
  }

  /// Starts the copy of the next batch into a slot: each row by eight threads.
  __device__ void copy_batch(unsigned slot, int left) {
    const bool there = static_cast<int>(threadIdx.x / 4 % 4) < left;
#pragma unroll 1
    for (int vector = threadIdx.x / 16, at = 0; vector < steps_ * 2; vector += 8, at += 8) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to_ + slot + at * 16),
                   "l"(there ? from_ + at * 8 : valid_), "r"(there ? 16 : 0)
                   : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    from_ += steps_ * 64;
  }

  const bf16* valid_;  // an address for copies that bring zeros
  int steps_;
  char* columns_;
  const bf16* from_;  // where the thread copies from and to
  unsigned to_;
  unsigned read_, slot_ = 0;  // where the lane reads, and the slot at hand, both in bytes
};

}  // namespace dm::cuda::conv
