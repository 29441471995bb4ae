// The warps of a narrow block of the selective scan forward that make: Δ, Δu and pieces for walkers, `out` of their readout.
#pragma once

#include "kernels/cuda/scan_forward_params.cuh"
#include "kernels/cuda/scan_narrow_tile.cuh"

namespace dm::cuda::scan::forward {

/// Copies of a warp's parts: 16 tokens, of activations with 16 channels and of projections with 16 columns. Moves from part
/// to part, so that no address is computed twice.
template <class T, Fit kFit>
class PartCopy {
  static constexpr int kEach = 16 / static_cast<int>(sizeof(T)), kRow = kNarrowChannels / kEach, kStep = 32 / kRow;
  static constexpr int kColumnEach = kFit != Fit::any ? 4 : 1, kColumnRow = kStates / kColumnEach,
                       kColumnStep = 32 / kColumnRow;

 public:
  /// Activations' rows are `stride` apart.
  __device__ PartCopy(const Extents& x, int stride, int token) : x_(x), stride_(stride), token_(token) {
    const int thread = threadIdx.x % 32, channel = blockIdx.x * kNarrowChannels + thread % kRow * kEach;
    place_ = kept<T>(Rows<T>::place(threadIdx.x / 32 % kWarps, thread / kRow) + thread % kRow * kEach);
    row_ = x.sequence(blockIdx.y, stride) + static_cast<std::int64_t>(token + thread / kRow) * stride + channel;
    column_ = x.column_rows(blockIdx.y) + static_cast<std::int64_t>(token + thread / kColumnRow) * x.columns + x.columns -
              2 * x.states + thread % kColumnRow * kColumnEach;
    single_ = x.column_rows(blockIdx.y) + static_cast<std::int64_t>(token + thread / kStates) * x.columns + x.columns -
              2 * x.states + thread % kStates;
  }
  /// To the warp's next part.
  __device__ void next() {
    token_ += kWarps * kTile;
    const std::int64_t columns = static_cast<std::int64_t>(kWarps * kTile) * x_.columns;
    row_ += static_cast<std::int64_t>(kWarps * kTile) * stride_, column_ += columns, single_ += columns;
  }

  /// Zeros outside.
  __device__ void rows(Rows<T>& to, const T* from) const {
    const int thread = threadIdx.x % 32, c = thread % kRow * kEach;
    const int channel = static_cast<int>(blockIdx.x) * kNarrowChannels + c;
#pragma unroll
    for (int round = 0; round < kTile / kStep; ++round) {
      const int t = thread / kRow + round * kStep;
      const T* row = from + (row_ + static_cast<std::int64_t>(round * kStep) * stride_);
      T* const place = to.at[0][0] + place_ + Rows<T>::place(0, round * kStep);
      const bool inside = token_ + t < x_.tokens;
      if constexpr (kFit != Fit::any) {
        copy16_async(place, row, kFit == Fit::whole || (inside && channel < x_.channels));
      } else {
#pragma unroll
        for (int k = 0; k < kEach; ++k) place[k] = inside && channel + k < x_.channels ? row[k] : from_float<T>(0.0f);
      }
    }
  }
  /// 16 columns from B's or from `skipped` behind them on, of which `x.states` exist.
  __device__ void columns(float (*to)[kStates], const float* from, int skipped) const {
    const int thread = threadIdx.x % 32, n = thread % kColumnRow * kColumnEach;
#pragma unroll
    for (int round = 0; round < kTile / kColumnStep; ++round) {
      const int t = thread / kColumnRow + round * kColumnStep;
      const float* at = from + (column_ + skipped + static_cast<std::int64_t>(round * kColumnStep) * x_.columns);
      const bool inside = kFit == Fit::whole || (token_ + t < x_.tokens && n < x_.states);
      if constexpr (kFit != Fit::any) {
        copy16_async(to[t] + n, at, inside);
      } else {
        copy4_async(to[t] + n, inside ? at : from, inside);
      }
    }
  }

  /// B of one recurrence where walkers read it.
  __device__ void input_columns(NarrowColumns<false>& to, const float* from) const {
    const int thread = threadIdx.x % 32, n = thread % kStates, first = thread / kStates;
    float* const place = &to.at[0][0][0][0].x + NarrowColumns<false>::at_token(first, n);
#pragma unroll
    for (int round = 0; round < kTile / 2; ++round) {
      const float* at = from + (single_ + static_cast<std::int64_t>(2 * round) * x_.columns);
      const bool inside = kFit == Fit::whole || (token_ + first + 2 * round < x_.tokens && n < x_.states);
      copy4_async(place + NarrowColumns<false>::at_token(2 * round, 0), inside ? at : from, inside);
    }
  }

 private:
  const Extents& x_;
  const int stride_;
  int token_;
  int place_;  ///< In Rows.
  std::int64_t row_, column_, single_;
};

/// One warp: turn `turn` of it is part warp + 4 · turn.
template <class T, int kRecurrences, Fit kFit>
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
        ahead_(p.x, p.x.channels, lane_.warp * kTile),
        current_(ahead_),
        current_z_(p.x, p.x.z_stride, lane_.warp * kTile) {
#pragma unroll
    for (int r = 0; r < kRecurrences; ++r) load_channels(p.recurrence[r].dt_bias, x_, channel_, bias_[r]);
    load_channels(p.skip, x_, channel_, skip_);
    out_ = p.out + x_.sequence(blockIdx.y) + static_cast<std::int64_t>(lane_.warp * kTile + 2 * lane_.quad) * x_.channels +
           channel_;
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
  /// These three in the order of turns.
  __device__ void fetch_inputs(int turn) {
    typename Shared::Raw& to = s_.raw[turn & 1];
    ahead_.rows(s_.u[turn & 3], p_.recurrence[0].u);
    typename Shared::Columns* const columns = s_.columns + ((turn & 3) * kRing + lane_.warp);
    if constexpr (Shared::kExact) {
      ahead_.columns(to.columns[0].C[lane_.warp], p_.recurrence[0].dbc, x_.states);
    } else {
      ahead_.columns(columns->readout.at[0], p_.recurrence[0].dbc, x_.states);
    }
#pragma unroll
    for (int r = 0; r < kRecurrences; ++r) {
      ahead_.rows(to.dt[r], p_.recurrence[r].dt);
      if constexpr (Shared::kExact) {
        ahead_.columns(to.columns[0].B[r][lane_.warp], p_.recurrence[r].dbc, 0);
      } else {
        ahead_.input_columns(columns->input[r], p_.recurrence[r].dbc);
      }
      if (r > 0) ahead_.rows(to.source_u[r - 1], p_.recurrence[r].u);
    }
    ahead_.next();
  }
  __device__ void fetch_output_inputs(int turn) {
    current_z_.rows(s_.z[turn & 1], p_.z);
    current_z_.next();
    if constexpr (kGated) current_.rows(s_.gate[turn & 1], p_.gate), current_.next();
  }

  /// Δ and Δu of recurrence r.
  __device__ void find(int turn, int r, Values<Shared::kExact>& values) const {
    const typename Shared::Raw& from = s_.raw[turn & 1];
    prepare<Shared::kExact, kFit>(values, NarrowDrive<Shared::kExact>::kTerm, r == 0 ? s_.u[turn & 3] : from.source_u[r - 1],
                                  from.dt[r], bias_[r], lane_, x_.tokens - part_of(turn) * kTile);
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
      if constexpr (Shared::kExact) to.input[r].fill(from.columns[0].B[r][lane_.warp]);
    }
    if constexpr (Shared::kExact) to.readout[0].fill(from.columns[0].C[lane_.warp], threadIdx.x % 32, 32);
  }

  __device__ void put_out(int turn) {
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
      output.template store<kFit>(out_, x_, begin, x_.tokens - token, channel_, lane_, own, sources);
      out_ += static_cast<std::int64_t>(kGroup) * x_.channels;
    }
    out_ += static_cast<std::int64_t>((kWarps - 1) * kTile) * x_.channels;
  }

  const ForwardParams<T>& p_;
  const Extents& x_;
  Shared& s_;
  const MakerLane<T> lane_;
  int parts_, channel_;
  PartCopy<T, kFit> ahead_, current_, current_z_;  ///< Of what a tile is made of, and of what its output is.
  float bias_[kRecurrences][2], skip_[2];
  Values<Shared::kExact> values_[kAhead];
  T* out_;
};

}  // namespace dm::cuda::scan::forward
