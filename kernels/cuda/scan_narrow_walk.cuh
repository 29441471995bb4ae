// The warps of a narrow block of the selective scan forward that walk: one channel and two states a lane.
#pragma once

#include "kernels/cuda/scan_forward_params.cuh"
#include "kernels/cuda/scan_forward_walk.cuh"
#include "kernels/cuda/scan_narrow_tile.cuh"

namespace dm::cuda::scan::forward {

/// A warp's 8 channels and 8 states of recurrence r, from the first token to the last, in quads of tokens. Exponentials and
/// the rank-one terms of a quad are made while the one before it is walked, a token's once that token's place is free; what
/// they are made of is loaded another quad ahead. Left alone, the compiler makes them late and waits for them: as in Walk, a
/// zero that it cannot know to be one ties an exponential to what must have been made before it.
template <class T, int kRecurrences, Fit kFit>
class NarrowWalker {
  using Shared = NarrowShared<T, kRecurrences>;
  static constexpr bool kExact = Shared::kExact;
  static constexpr int kColumnBytes = sizeof(typename Shared::Columns);
  static constexpr int kPartBytes = sizeof(typename Shared::Part);
  static constexpr int kReadoutsBytes = sizeof(typename Shared::Readouts) * kRecurrences;

 public:
  __device__ NarrowWalker(const ForwardParams<T>& p, Shared& s, int r)
      : p_(p),
        s_(s),
        x_(p.x),
        recurrence_(p.recurrence[r]),
        r_(r),
        half_(static_cast<int>(threadIdx.x) / 32 % 2),
        local_(static_cast<int>(threadIdx.x) / 64 % 2 * 8 + pair_),
        channel_(static_cast<int>(blockIdx.x) * kNarrowChannels + local_),
        state_(8 * half_ + 2 * quad_),
        shared_(reinterpret_cast<const unsigned char*>(&s)) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      rate_[k] = rate_of(recurrence_, x_, channel_, state_ + k);
      h_[k] =
          recurrence_.initial && channel_ < x_.channels && state_ + k < x_.states ? recurrence_.initial[row() + k] : 0.0f;
    }
    const typename Shared::Part& part = s.ring[0];
    const int drive = NarrowDrive<kExact>::at(local_, 0), term = kExact ? quad_ / 2 : quad_ % 2;
    delta_place_ = place_of(part.drive[r].delta[drive]);
    input_place_ = place_of(part.drive[r].input[term * NarrowDrive<kExact>::kPiece + drive]);
    if constexpr (kExact) {
      B_place_ = place_of(part.input[r].at[0][quad_ % 2 * NarrowColumns<true>::kPiece + 8 * half_ + pair_]);
      C_place_ = place_of(part.readout[0].at[0][pair_][state_]);
    } else {
      B_place_ = place_of(s.columns[0].input[r].at[0][half_][term][pair_]);
      C_place_ = place_of(s.columns[0].readout.at[0][pair_][state_]);
    }
    y_place_ = place_of(s.y[0][r].of[0][half_][Shared::Readouts::kQuad * quad_ + local_]);
  }

  __device__ void run(int parts) {
    const bool saving = r_ == 0 && recurrence_.states && channel_ < x_.channels;
    T* states = saving ? recurrence_.states + x_.saved_states(blockIdx.y, 0, 0) + channel_ * kStates + state_ : nullptr;
    const std::int64_t states_a_chunk = std::int64_t{x_.channels} * kStates;

    s_.made[0].wait(0);
    begin();
    int next = 0, readouts = 0;  // bytes into the ring
#pragma unroll 1
    for (int part = 0; part < parts; ++part) {
      const int now = next;
      next = now == (kRing - 1) * kPartBytes ? 0 : now + kPartBytes;
      const int columns = kExact ? now : columns_of(part), next_columns = kExact ? next : columns_of(part + 1);
      // Asked for two quads ahead, so that nobody waits for the answer.
      const WarpBarrier& next_made = s_.made[(part + 1) % kRing];
      const std::uint32_t next_turn = (part + 1) / kRing & 1;
      const bool there = next_made.ended(next_turn);
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        if (q % 2 == 0) {
          const bool inside = kFit == Fit::whole || part * kTile + 4 * q < x_.tokens;
          store2_if(saving && inside, states, h_);
          states += states_a_chunk;
#pragma unroll
          for (int piece = 0; piece < (kExact ? 2 : 1); ++piece) {
            load2(at(columns + C_place_) + (piece * kTile + 4 * q) * kStates, C_[piece]);
          }
        }
        if (q == 2 && !there) next_made.wait(next_turn);
        load(q < 2 ? now : next, q < 2 ? columns : next_columns, (q + 2) % kQuads, ahead_[q % 2]);
        walk(q, ahead_[(q + 1) % 2]);
        if (q % 2 == 1) {
          constexpr int kGroupFloats = sizeof(typename Shared::Readouts) / sizeof(float) / (kTile / kGroup);
          store2(const_cast<float*>(at(readouts + y_place_)) + q / 2 * kGroupFloats, y_);
        }
      }
      readouts = readouts == (2 * kRing - 1) * kReadoutsBytes ? 0 : readouts + kReadoutsBytes;
      s_.walked[part % kRing].arrive();
    }
    if (r_ > 0 || !p_.final_state || channel_ >= x_.channels) return;
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (state_ + k < x_.states) p_.final_state[row() + k] = h_[k];
    }
  }

 private:
  struct Ahead {
    float delta[4], input[4], B[kExact ? 4 : 2];  // of four tokens
  };

  /// Of this lane's states in [B, D, N].
  __device__ std::int64_t row() const {
    return (std::int64_t{blockIdx.y} * x_.channels + channel_) * x_.states + state_;
  }

  /// Bytes from the block's shared memory to what this lane reads or writes of the ring's first part: hidden from the
  /// compiler, which would find them again in every part.
  template <class Element>
  __device__ int place_of(const Element& element) const {
    int place = static_cast<int>(reinterpret_cast<const unsigned char*>(&element) - shared_);
    asm("" : "+r"(place));
    return place;
  }
  __device__ const float* at(int place) const {
    return reinterpret_cast<const float*>(shared_ + place);
  }

  static __device__ int columns_of(int part) {
    return part % (4 * kRing) * kColumnBytes;
  }
  __device__ void load(int part, int columns, int q, Ahead& to) const {
    load4(at(part + delta_place_) + 4 * q, to.delta);
    load4(at(part + input_place_) + 4 * q, to.input);
    if constexpr (kExact) {
      load4(at(columns + B_place_) + 8 * NarrowColumns<true>::kPiece * q, to.B);
    } else {
      load2(at(columns + B_place_) + NarrowColumns<false>::at_token(4 * q, 0), to.B);
    }
  }
  __device__ void find_decay(const Ahead& from, int i, float zero) {
#pragma unroll
    for (int k = 0; k < 2; ++k) decay_[i][k] = exp2_fast(fmaf(from.delta[i], rate_[k], zero));
  }
  /// Rows of a product are eight channels of token i and of the next; in float32 each has its own right factor.
  __device__ void find_added(const Ahead& from, int i) {
    float first[4], other[4];
    product_k4(first, from.input[i], from.input[i + 1], from.B[kExact ? i : i / 2]);
    if constexpr (kExact) product_k4(other, from.input[i], from.input[i + 1], from.B[i + 1]);
    const float(&second)[4] = kExact ? other : first;
#pragma unroll
    for (int k = 0; k < 2; ++k) added_[i][k] = first[k], added_[i + 1][k] = second[2 + k];
    made_ = second[0];
  }
  /// So it is in the readout of tokens i and i + 1 of a group, which are of use in columns i and i + 1.
  __device__ void read_out(int i, const float (&seen)[2][2]) {
    const float whole[4] = {seen[0][0], seen[1][0], seen[0][1], seen[1][1]};
    float sums[4] = {};
    if constexpr (kExact) {
      add_exact_product_k8(sums, whole, C_[0], C_[kExact]);
    } else {
      add_product_k8(sums, whole, C_[0][0], C_[0][1]);
    }
    y_[0] = quad_ == i / 2 ? sums[0] : y_[0], y_[1] = quad_ == i / 2 ? sums[3] : y_[1];
  }

  __device__ void begin() {
    load(0, 0, 0, ahead_[0]);
#pragma unroll
    for (int i = 0; i < 4; ++i) find_decay(ahead_[0], i, 0.0f);
    find_added(ahead_[0], 0);
    find_added(ahead_[0], 2);
    load(0, 0, 1, ahead_[1]);
  }
  /// Quad q of a part; the next one's exponentials and terms are made of `next`.
  __device__ void walk(int q, const Ahead& next) {
    float seen[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int k = 0; k < 2; ++k) h_[k] = decay_[i][k] * h_[k] + added_[i][k], seen[i % 2][k] = h_[k];
      const float earlier = i % 2 == 0 ? decay_[(i + 2) % 4][0] : made_;
      find_decay(next, i, __uint_as_float(__float_as_uint(h_[0]) & __float_as_uint(earlier) & p_.no_bits));
      if (i % 2 == 1) {
        read_out(4 * (q % 2) + i - 1, seen);
        find_added(next, i - 1);
      }
    }
  }

  const ForwardParams<T>& p_;
  Shared& s_;
  const Extents& x_;
  const Recurrence<T>& recurrence_;
  const int r_, pair_ = static_cast<int>(threadIdx.x) % 32 / 4, quad_ = static_cast<int>(threadIdx.x) % 4;
  const int half_, local_, channel_, state_;  ///< Which eight states, the block's channel, the channel, the first state.
  const unsigned char* const shared_;
  int delta_place_, input_place_, B_place_, C_place_, y_place_;
  float rate_[2], h_[2];
  Ahead ahead_[2];
  float decay_[4][2], added_[4][2], made_, C_[kExact ? 2 : 1][2] = {}, y_[2] = {};
};

}  // namespace dm::cuda::scan::forward
