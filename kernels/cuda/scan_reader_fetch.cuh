// Copies of the reader of states: what a warp's next turns read, on its way to the warp's own shared memory.
#pragma once

#include "kernels/cuda/scan_reader_tile.cuh"

namespace dm::cuda::scan::backward {

/// Left alone, the compiler computes what follows from the lane anew wherever it is used.
template <class Word>
__device__ inline void keep(Word& word) {
  asm volatile("" : "+r"(word));
}

/// A warp's copies, turn by turn, zeros outside; where a lane reads moves along instead of being computed again. kWhole: all
/// tiles and groups of channels are whole, rows of activations and columns of projections begin at multiples of 16 bytes.
template <class T, bool kWhole>
class ReaderFetch {
 public:
  __device__ ReaderFetch(const ReaderParams<T>& p, ReaderWarpShared<T>& s, ReaderTurn first, int end, const ReaderLane& lane)
      : p_(p), s_(s), turn_(first), end_(end), warp_(lane.warp), lane_(lane.lane) {
    const Extents& x = p.x;
    const int t = lane_ % kCopies / kRow, c = lane_ % kRow * kEach, i = lane_ * kEach, channel = blockIdx.x * kChannels;
    const int tile = turn_.tile + warp_;
    row_ = x.sequence(blockIdx.y) + static_cast<std::int64_t>(tile * kTile + t) * x.channels + channel + c;
    state_ = x.saved_states(blockIdx.y, tile, 0) + static_cast<std::int64_t>(channel) * kStates + i;
    row_to_ = shared_address(s.slot[0].u.row(t) + c) + (second() ? sizeof s.slot[0].u : 0);
    state_to_ = shared_address(&s.slot[0].states[i / kStates % 2][i / kStates / 2][i % kStates]);
    keep(row_to_), keep(state_to_);
  }

  /// The turn's inputs to a slot, and on to the next turn.
  __device__ void run(int slot) {
    if (turn_.tile < end_) {
      const ReaderPart<T>& part = p_.part[turn_.part];
      if constexpr (kWhole) {
        whole(part.source, slot * static_cast<int>(sizeof(ReaderSlot<T>)));
      } else {
        any(part.source, s_.slot[slot]);
      }
      if (turn_.group == 0 || p_.parts > kKeptColumns) columns(part, s_.slot[slot]);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    advance();
  }

 private:
  static constexpr int kEach = 16 / static_cast<int>(sizeof(T)), kRow = kWarpChannels / kEach, kCopies = kTile * kRow;
  using Slot = ReaderSlot<T>;

  static __device__ void copy(unsigned to, const T* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  }
  /// Lanes that copy the second of two activations, when a warp has enough for both.
  __device__ bool second() const { return lane_ >= kCopies; }

  __device__ void whole(const Recurrence<T>& source, unsigned slot) const {
    const Extents& x = p_.x;
    const unsigned to = row_to_ + slot;
    constexpr unsigned kRows = sizeof(typename Slot::Rows);
    if constexpr (kCopies == 16) {
      copy(to, (second() ? source.dt : source.u) + row_);
    } else {
      copy(to, source.u + row_);
      copy(to + kRows, source.dt + row_);
    }
#pragma unroll
    for (int i = 0; i < kWarpChannels * kStates; i += 32 * kEach) {
      copy(state_to_ + slot + i / 2 * static_cast<int>(sizeof(T)), source.states + state_ + i);
    }
    if (turn_.part > 0) return;
    const int t = lane_ % kCopies / kRow, c = lane_ % kRow * kEach;
    const T* const z = p_.z + x.sequence(blockIdx.y, x.z_stride) +
                       static_cast<std::int64_t>((turn_.tile + warp_) * kTile + t) * x.z_stride + blockIdx.x * kChannels +
                       turn_.group * kWarpChannels + c;
    if constexpr (kCopies == 16) {
      copy(to + 2 * kRows, second() ? p_.dout + row_ : z);
      if (!second()) copy(to + 4 * kRows, p_.gate + row_);
    } else {
      copy(to + 2 * kRows, z);
      copy(to + 3 * kRows, p_.dout + row_);
      copy(to + 4 * kRows, p_.gate + row_);
    }
  }
  __device__ void any(const Recurrence<T>& source, Slot& slot) const {
    const Extents& x = p_.x;
    const int first_token = (turn_.tile + warp_) * kTile, channel = blockIdx.x * kChannels + turn_.group * kWarpChannels;
    const T* const states =
        source.states + x.saved_states(blockIdx.y, turn_.tile + warp_, 0) + static_cast<std::int64_t>(channel) * kStates;
    for (int i = lane_; i < kWarpChannels * kStates; i += 32) {
      const int c = i / kStates;
      const bool inside = first_token < x.tokens && channel + c < x.channels;
      slot.states[c % 2][c / 2][i % kStates] = inside ? states[i] : from_float<T>(0.0f);
    }
    const auto rows = [&](typename Slot::Rows& to, const T* from, int stride) {
      from += x.sequence(blockIdx.y, stride) + channel;
      for (int i = lane_; i < kTile * kWarpChannels; i += 32) {
        const int t = i / kWarpChannels, c = i % kWarpChannels;
        const bool inside = first_token + t < x.tokens && channel + c < x.channels;
        to.row(t)[c] = inside ? from[static_cast<std::int64_t>(first_token + t) * stride + c] : from_float<T>(0.0f);
      }
    };
    rows(slot.u, source.u, x.channels);
    rows(slot.dt, source.dt, x.channels);
    if (turn_.part > 0) return;
    rows(slot.z, p_.z, x.z_stride);
    rows(slot.dout, p_.dout, x.channels);
    rows(slot.gate, p_.gate, x.channels);
  }
  __device__ void columns(const ReaderPart<T>& part, Slot& to) const {
    const Extents& x = p_.x;
    const int token = (turn_.tile + warp_) * kTile, count = x.states - part.slice * kStates;
    const float* from = part.source.dbc + x.column_rows(blockIdx.y) + static_cast<std::int64_t>(token) * x.columns;
    constexpr int kWide = kWhole ? 4 : 1, kWideRow = kStates / kWide;
#pragma unroll
    for (int first = 0; first < kTile * kWideRow; first += 32) {
      const int i = first + lane_, t = i / kWideRow, n = i % kWideRow * kWide;
      if constexpr (kWhole) {
        copy16_async(&to.B[t][n], from + t * x.columns + n, n < count);
      } else {
        copy4_async(&to.B[t][n], from + t * x.columns + n, token + t < x.tokens && n < count);
      }
    }
  }
  __device__ void advance() {
    const Extents& x = p_.x;
    if (++turn_.part < p_.parts) return;
    turn_.part = 0;
    row_ += kWarpChannels, state_ += kWarpChannels * kStates;
    if (++turn_.group < turn_.groups) return;
    const int back = turn_.groups * kWarpChannels;
    turn_.group = 0;
    turn_.tile += kReaderWarps;
    row_ += static_cast<std::int64_t>(kReaderWarps * kTile) * x.channels - back;
    state_ += (static_cast<std::int64_t>(kReaderWarps) * x.slices * x.channels - back) * kStates;
  }

  const ReaderParams<T>& p_;
  ReaderWarpShared<T>& s_;
  ReaderTurn turn_;
  int end_, warp_, lane_;
  std::int64_t row_, state_;
  unsigned row_to_, state_to_;
};

}  // namespace dm::cuda::scan::backward
