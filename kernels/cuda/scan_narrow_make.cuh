// The warps of a narrow block of the selective scan forward that make: Δ, Δu and pieces for walkers, `out` of their readout.
#pragma once

#include "kernels/cuda/scan_forward_params.cuh"
#include "kernels/cuda/scan_narrow_tile.cuh"

namespace dm::cuda::scan::forward {

/// Copies of a warp's parts: 16 tokens, of activations with 16 channels and of projections with 16 columns.
template <class T, bool kAligned>
class PartCopy {
 public:
  __device__ PartCopy(const Extents& x, int b, int channel) : x_(x), b_(b), first_channel_(channel) {}

  /// Rows `stride` apart of a part that begins at `token`; zeros outside.
  __device__ void rows(Rows<T>& to, const T* from, int stride, int token, const Lane& lane) const {
    constexpr int kEach = 16 / static_cast<int>(sizeof(T)), kRow = kNarrowChannels / kEach, kStep = 32 / kRow;
    const int thread = threadIdx.x % 32, c = thread % kRow * kEach, channel = first_channel_ + c;
#pragma unroll
    for (int round = 0; round < kTile / kStep; ++round) {
      const int t = thread / kRow + round * kStep;
      const T* row = from + x_.sequence(b_, stride) + (static_cast<std::int64_t>(token + t) * stride + channel);
      T* const place = to.row(lane.warp, t) + c;
      const bool inside = token + t < x_.tokens;
      if constexpr (kAligned) {
        copy16_async(place, row, inside && channel < x_.channels);
      } else {
#pragma unroll
        for (int k = 0; k < kEach; ++k) place[k] = inside && channel + k < x_.channels ? row[k] : from_float<T>(0.0f);
      }
    }
  }
  /// 16 columns from `column` on, of which `x.states` exist.
  __device__ void columns(float (*to)[kStates], const float* from, int column, int token) const {
    from += x_.column_rows(b_) + column;
    constexpr int kEach = kAligned ? 4 : 1, kRow = kStates / kEach;
#pragma unroll
    for (int round = 0; round < kTile * kRow / 32; ++round) {
      const int i = threadIdx.x % 32 + 32 * round, t = i / kRow, n = i % kRow * kEach;
      const float* at = from + (static_cast<std::int64_t>(token + t) * x_.columns + n);
      const bool inside = token + t < x_.tokens && n < x_.states;
      if constexpr (kAligned) {
        copy16_async(to[t] + n, at, inside);
      } else {
        copy4_async(to[t] + n, inside ? at : from, inside);
      }
    }
  }

 private:
  const Extents& x_;
  int b_, first_channel_;
};

/// One warp: turn `turn` of it is part warp + 4 · turn.
template <class T, int kRecurrences, bool kAligned>
class NarrowMaker {
  using Shared = NarrowShared<T, kRecurrences>;
  static constexpr bool kGated = kRecurrences > 1;
  static constexpr int kAhead = kRecurrences < 3 ? kRecurrences : 1;  ///< Recurrences whose values wait in registers.

 public:
  __device__ NarrowMaker(const ForwardParams<T>& p, Shared& s, int parts)
      : p_(p),
        x_(p.x),
        s_(s),
        parts_(parts),
        channel_(static_cast<int>(blockIdx.x) * kNarrowChannels + 2 * lane_.pair),
        copy_(p.x, blockIdx.y, blockIdx.x * kNarrowChannels) {
#pragma unroll
    for (int r = 0; r < kRecurrences; ++r) load_channels(p.recurrence[r].dt_bias, x_, channel_, bias_[r]);
    load_channels(p.skip, x_, channel_, skip_);
    out_ = p.out + x_.sequence(blockIdx.y) + static_cast<std::int64_t>(2 * lane_.quad) * x_.channels + channel_;
  }

  __device__ void run() {
    for (int turn = 0; turn < 2; ++turn) {
      if (exists(turn)) fetch_inputs(turn);
    }
    arrived();
    find_ahead(0);
#pragma unroll 1
    for (int turn = 0; part_of(turn) < parts_ + kWarps; ++turn) {
      arrived();
      if (turn > 0) s_.walked[lane_.warp].wait((turn - 1) & 1);
      if (exists(turn)) hand_over(turn);
      s_.made[lane_.warp].arrive();  // walkers look beyond the last part
      __syncwarp();                  // all lanes have read what is fetched over next
      if (exists(turn + 2)) fetch_inputs(turn + 2);
      if (exists(turn)) fetch_output_inputs(turn);
      if (turn > 0) put_out(turn - 1);
      find_ahead(turn + 1);
    }
  }

 private:
  __device__ int part_of(int turn) const {
    return lane_.warp + kWarps * turn;
  }
  __device__ bool exists(int turn) const {
    return turn >= 0 && part_of(turn) < parts_;
  }

  /// What this warp has fetched so far is there for all its lanes.
  __device__ void arrived() const {
    wait_for_copies();
    __syncwarp();
  }
  __device__ void fetch_inputs(int turn) {
    typename Shared::Raw& to = s_.raw[turn & 1];
    const int token = part_of(turn) * kTile, column = x_.columns - 2 * x_.states;
    copy_.rows(s_.u[turn & 3], p_.recurrence[0].u, x_.channels, token, lane_);
    copy_.columns(to.C[lane_.warp], p_.recurrence[0].dbc, column + x_.states, token);
#pragma unroll
    for (int r = 0; r < kRecurrences; ++r) {
      copy_.rows(to.dt[r], p_.recurrence[r].dt, x_.channels, token, lane_);
      copy_.columns(to.B[r][lane_.warp], p_.recurrence[r].dbc, column, token);
      if (r > 0) copy_.rows(to.source_u[r - 1], p_.recurrence[r].u, x_.channels, token, lane_);
    }
  }
  __device__ void fetch_output_inputs(int turn) {
    const int token = part_of(turn) * kTile;
    copy_.rows(s_.z[turn & 1], p_.z, x_.z_stride, token, lane_);
    if constexpr (kGated) copy_.rows(s_.gate[turn & 1], p_.gate, x_.channels, token, lane_);
  }

  /// Δ and Δu of recurrence r.
  __device__ void find(int turn, int r, float (&values)[3][8]) const {
    const typename Shared::Raw& from = s_.raw[turn & 1];
    prepare(values, r == 0 ? s_.u[turn & 3] : from.source_u[r - 1], from.dt[r], bias_[r], lane_,
            x_.tokens - part_of(turn) * kTile);
  }
  __device__ void find_ahead(int turn) {
    if (!exists(turn)) return;
#pragma unroll
    for (int r = 0; r < kAhead; ++r) find(turn, r, values_[r]);
  }
  /// A part to the walkers.
  __device__ void hand_over(int turn) {
    const typename Shared::Raw& from = s_.raw[turn & 1];
    typename Shared::Part& to = s_.ring[lane_.warp];
#pragma unroll
    for (int r = 0; r < kRecurrences; ++r) {
      if (r >= kAhead) find(turn, r, values_[0]);
      to.drive[r].store(values_[r < kAhead ? r : 0], lane_);
      to.input[r].fill(from.B[r][lane_.warp]);
    }
    to.readout.fill(from.C[lane_.warp], threadIdx.x % 32, 32);
  }

  __device__ void put_out(int turn) const {
    const int token = part_of(turn) * kTile;
    const typename Shared::Readouts* y = s_.y[part_of(turn) % (2 * kRing)];
#pragma unroll
    for (int group = 0; group < kTile / kGroup; ++group) {
      const int begin = group * kGroup;
      const Output<kGated> output(s_.u[turn & 3], s_.z[turn & 1], &s_.gate[turn & 1], skip_, begin, lane_);
      float own[2][2], sources[2][2] = {};
#pragma unroll
      for (int r = 0; r < kRecurrences; ++r) {
        float sums[4], others[4];
        const int at = Shared::Readouts::kQuad * lane_.quad + 2 * lane_.pair;
        load4(&y[r].of[group][0][at].x, sums);
        load4(&y[r].of[group][1][at].x, others);
        float(&to)[2][2] = r == 0 ? own : sources;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float sum = sums[i] + others[i];
          to[i % 2][i / 2] = r < 2 ? sum : to[i % 2][i / 2] + sum;
        }
      }
      output.template store<kAligned>(out_ + static_cast<std::int64_t>(token + begin) * x_.channels, x_, begin,
                                      x_.tokens - token, channel_, lane_, own, sources);
    }
  }

  const ForwardParams<T>& p_;
  const Extents& x_;
  Shared& s_;
  const Lane lane_;
  int parts_, channel_;
  PartCopy<T, kAligned> copy_;
  float bias_[kRecurrences][2], skip_[2], values_[kAhead][3][8];
  T* out_;
};

}  // namespace dm::cuda::scan::forward
