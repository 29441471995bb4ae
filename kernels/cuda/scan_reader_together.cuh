// The reader of states where all is aligned: the tiles of one or two sources walked together.
//
// What sources share is done once: q, dgate, the products of h · C and of q and h are of the sources' sum of states, which
// costs an addition for each of theirs but one, and two recurrences fill each other's waits for exponentials. All turns are
// alike: what is not known at compile time is which tile, and which of its four groups of channels. A turn of two sources
// issues about 1110 instructions, 156 of them for the unit of exponentials, which is the bound: 1248 clocks of a scheduler.
#pragma once

#include "kernels/cuda/scan_reader_fetch.cuh"

namespace dm::cuda::scan::backward {

inline constexpr int kTogetherGroups = kChannels / kWarpChannels;

template <int kSources>
struct alignas(16) TogetherWarp {
  using Rows = ReaderRows<bf16>;
  struct alignas(16) Slot {
    Rows z, dout, gate;
    struct alignas(16) Source {
      Rows u, dt;
      bf16 states[2][kWarpChannels / 2][kStates];  // even channels, then odd ones
    } source[kSources];
  } slot[kReaderSlots];
  float raw_B[kSources][kTile][kStates], raw_C[kTile][kStates];  // of a tile, for its first group
  ReaderDrive drive[kSources];
  ReaderPlane B[kSources][2];
  ReaderGates gates;
};

template <int kSources>
struct alignas(16) TogetherShared {
  TogetherWarp<kSources> warp[kReaderWarps];
  struct alignas(16) Fixed {
    float rate[2][kChannels / 2][kStates];  // of even channels, then of odd ones
    float bias[kChannels];
  } fixed[kSources];
};

/// What is elementwise before a turn's steps, found beside the last steps of the turn before and stored after them.
template <int kSources>
struct TogetherInputs {
  float delta[kSources][4], input[kSources][4];
  ReaderFactors factors;

  __device__ void find(const typename TogetherWarp<kSources>::Slot& slot, const TogetherShared<kSources>& shared, int group,
                       const ReaderLane& lane) {
    factors.find(slot.z, slot.dout, slot.gate, lane);
#pragma unroll
    for (int k = 0; k < kSources; ++k) {
      find_drive(slot.source[k].u, slot.source[k].dt, shared.fixed[k].bias + group * kWarpChannels, lane, delta[k],
                 input[k]);
    }
  }
  __device__ void store(TogetherWarp<kSources>& to, const ReaderLane& lane) const {
    factors.store(to.gates, lane);
#pragma unroll
    for (int k = 0; k < kSources; ++k) store_drive(to.drive[k], lane, delta[k], input[k]);
  }
};

/// A warp's copies, turn by turn.
template <int kSources>
class TogetherFetch {
 public:
  __device__ TogetherFetch(const ReaderParams<bf16>& p, TogetherWarp<kSources>& s, int tile, int end, const ReaderLane& lane)
      : p_(p), s_(s), end_(end), lane_(lane) {
    const Extents& x = p.x;
    const int t = lane.lane % 16 / 2, c = lane.lane % 2 * 8, i = lane.lane * 8, channel = blockIdx.x * kChannels;
    const int token = lane.warp * kTile + t;
    row_ = x.sequence(blockIdx.y) + static_cast<std::int64_t>(tile * kTile) * x.channels + channel;
    z_row_ = x.sequence(blockIdx.y, x.z_stride) + static_cast<std::int64_t>(tile * kTile) * x.z_stride + channel;
    state_ = x.saved_states(blockIdx.y, tile, 0) + static_cast<std::int64_t>(channel) * kStates;
    lane_row_ = token * x.channels + c, lane_z_row_ = token * x.z_stride + c;
    lane_state_ = lane.warp * x.channels * kStates + i;
    row_to_ = shared_address(s.slot[0].z.row(t) + c) + (second() ? sizeof s.slot[0].z : 0);
    state_to_ = shared_address(&s.slot[0].source[0].states[i / kStates % 2][i / kStates / 2][i % kStates]);
    keep(lane_row_), keep(lane_z_row_), keep(lane_state_), keep(row_to_), keep(state_to_);
  }

  /// The turn's inputs to a slot, and on to the next turn.
  __device__ void run(int tile, int group) {
    const unsigned slot = group % kReaderSlots;
    if (tile < end_) {
      const Extents& x = p_.x;
      const unsigned offset = slot * static_cast<unsigned>(sizeof(Slot)), to = row_to_ + offset;
      copy(to, second() ? p_.dout + row_ + lane_row_ : p_.z + z_row_ + lane_z_row_);
      if (!second()) copy(to + 2 * kRows, p_.gate + row_ + lane_row_);
#pragma unroll
      for (int k = 0; k < kSources; ++k) {
        constexpr unsigned kEach = sizeof(typename Slot::Source);
        const Recurrence<bf16>& source = p_.part[k].source;
        copy(to + 3 * kRows + k * kEach, (second() ? source.dt : source.u) + row_ + lane_row_);
        copy(state_to_ + offset + k * kEach, source.states + state_ + lane_state_);
      }
      if (group == 0) {
        const unsigned to_column = shared_address(&s_.raw_B[0][lane_.pair][4 * lane_.quad]);
        const std::int64_t column = x.column_rows(blockIdx.y) +
                                    static_cast<std::int64_t>((tile + lane_.warp) * kTile + lane_.pair) * x.columns +
                                    4 * lane_.quad;
#pragma unroll
        for (int k = 0; k < kSources; ++k) copy(to_column + k * kRaw, p_.part[k].source.dbc + column);
        copy(to_column + kSources * kRaw, p_.dbc + (x.columns - kStates) + column);
      }
      row_ += kWarpChannels, z_row_ += kWarpChannels, state_ += kWarpChannels * kStates;
      if (group == kTogetherGroups - 1) {
        constexpr int kTokens = kReaderWarps * kTile;
        row_ += static_cast<std::int64_t>(kTokens) * x.channels - kChannels;
        z_row_ += static_cast<std::int64_t>(kTokens) * x.z_stride - kChannels;
        state_ += (static_cast<std::int64_t>(kReaderWarps) * x.channels - kChannels) * kStates;
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }

 private:
  using Slot = typename TogetherWarp<kSources>::Slot;
  static constexpr unsigned kRows = sizeof(ReaderRows<bf16>), kRaw = kTile * kStates * sizeof(float);
  static_assert(sizeof(typename Slot::Source) % 16 == 0 && kRows % 16 == 0);

  static __device__ void copy(unsigned to, const void* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  }

  /// Lanes that copy the second of two activations.
  __device__ bool second() const {
    return lane_.lane >= 16;
  }

  const ReaderParams<bf16>& p_;
  TogetherWarp<kSources>& s_;
  int end_;
  const ReaderLane& lane_;
  std::int64_t row_, z_row_, state_;  // of the block
  int lane_row_, lane_z_row_, lane_state_;
  unsigned row_to_, state_to_;
};

/// The sources' states through a tile, all of them a token at a time: adds what they give to r of this lane's elements and
/// to C̄. Exponentials are asked for two tokens ahead and not before: registers hold no more of them. `beside` runs in the
/// last two tokens' steps, which have nothing left to ask for.
template <int kSources, class Besides>
__device__ void walk_together(TogetherWarp<kSources>& s, const float (&rate)[kSources][2][4], float (&h)[kSources][2][4],
                              const ReaderColumns<bf16>& readout, const ReaderLane& lane, float (&r)[4], ReaderSums& total,
                              std::uint32_t no_bits, const Besides& beside) {
  float decay[2][kSources][2][4], delta[kSources][4];
  const auto load_delta = [&](int two) {
#pragma unroll
    for (int k = 0; k < kSources; ++k) load4(s.drive[k].delta.row(two, lane.pair), delta[k]);
  };
  const auto find = [&](int i, int k, float zero) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int n = 0; n < 4; ++n) decay[i][k][c][n] = exp2_fast(fmaf(delta[k][2 * i + c], rate[k][c][n], zero));
    }
  };
  load_delta(0);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int k = 0; k < kSources; ++k) find(i, k, 0.0f);
  }
#pragma unroll
  for (int two = 0; two < kTile / 2; ++two) {
    float input[kSources][4], B[kSources][4], q[4];
#pragma unroll
    for (int k = 0; k < kSources; ++k) {
      load4(s.drive[k].input[lane.quad / 2].row(two, lane.pair), input[k]);
      load4(s.B[k][lane.quad % 2].row(two, lane.pair), B[k]);
    }
    load4(s.gates.q.row(two, lane.pair), q);
    if (two + 1 < kTile / 2) load_delta(two + 1);
    if (two + 1 == kTile / 2) beside();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float sum[2][4];
#pragma unroll
      for (int k = 0; k < kSources; ++k) {
        float added[2][4];
#pragma unroll
        for (int j = 0; j < 2; ++j) product_k4(added[j], input[k][2 * i], input[k][2 * i + 1], B[k][2 * i + j]);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            h[k][c][n] = decay[i][k][c][n] * h[k][c][n] + added[n / 2][2 * c + n % 2];
            sum[c][n] = k == 0 ? h[k][c][n] : sum[c][n] + h[k][c][n];
          }
        }
        if (two + 1 < kTile / 2) find(i, k, __uint_as_float(__float_as_uint(h[k][0][0]) & no_bits));
      }
      float read[4] = {};
      readout.read(sum, read);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (lane.quad == two) r[2 * i + c] += read[2 * c + i];
#pragma unroll
        for (int n = 0; n < 4; ++n) total.dC[2 * two + i][n] += q[2 * i + c] * sum[c][n];
      }
    }
  }
}

template <int kSources>
__global__ void __launch_bounds__(kReaderThreads, kReaderBlocks<bf16>)
    reader_together_kernel(const __grid_constant__ ReaderParams<bf16> p) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  TogetherShared<kSources>& shared = *reinterpret_cast<TogetherShared<kSources>*>(shared_bytes);
  const Extents& x = p.x;
  const int first_channel = blockIdx.x * kChannels;
  const ReaderLane lane;
  TogetherWarp<kSources>& s = shared.warp[lane.warp];
#pragma unroll
  for (int k = 0; k < kSources; ++k) {
    for (int i = threadIdx.x; i < kChannels * kStates; i += kReaderThreads) {
      const int c = i / kStates, n = i % kStates;
      shared.fixed[k].rate[c % 2][c / 2][n] = rate_of(p.part[k].source, x, first_channel + c, n);
    }
    for (int c = threadIdx.x; c < kChannels; c += kReaderThreads) {
      shared.fixed[k].bias[c] = p.part[k].source.dt_bias[first_channel + c];
    }
  }
  __syncthreads();

  const int begin = static_cast<int>(blockIdx.z) * p.tiles_a_block;
  const int end = min(begin + p.tiles_a_block, x.tokens / kTile);
  TogetherFetch<kSources> fetch(p, s, begin, end, lane);
  static_assert(kReaderSlots == 2);
  fetch.run(begin, 0), fetch.run(begin, 1);
  ReaderSums total;
  ReaderColumns<bf16> readout;
  // What is written, from the block's row on.
  std::int64_t at = x.sequence(blockIdx.y) + static_cast<std::int64_t>(begin * kTile) * x.channels + first_channel;
  int lane_at = (lane.warp * kTile + 2 * lane.quad) * x.channels + 2 * lane.pair;
  keep(lane_at);
  TogetherInputs<kSources> inputs;
  const auto find_inputs = [&](int group) {
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncwarp();
    inputs.find(s.slot[group % 2], shared, group % kTogetherGroups, lane);
  };
  find_inputs(0);
  for (int tile = begin; tile < end; tile += kReaderWarps) {
#pragma unroll 1
    for (int group = 0; group < kTogetherGroups; ++group) {
      typename TogetherWarp<kSources>::Slot& slot = s.slot[group % 2];
      const int local = group * kWarpChannels;
      float h[kSources][2][4], rate[kSources][2][4];
      __syncwarp();
      inputs.store(s, lane);
      const float(&q)[4] = inputs.factors.q;
      store2(p.q + at + lane_at, {q[0], q[1]});
      store2(p.q + at + lane_at + x.channels, {q[2], q[3]});
      if (group == 0) {
        float C[4];
        load4(&s.raw_C[lane.pair][4 * lane.quad], C);
        readout.cut(C);
#pragma unroll
        for (int k = 0; k < kSources; ++k) prepare_columns(s.B[k], s.raw_B[k], lane);
      }
#pragma unroll
      for (int k = 0; k < kSources; ++k) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          load4(&slot.source[k].states[c][lane.pair][4 * lane.quad], h[k][c]);
          load4(&shared.fixed[k].rate[c][local / 2 + lane.pair][4 * lane.quad], rate[k][c]);
        }
      }
      __syncwarp();
      fetch.run(tile + group / 2 * kReaderWarps, group ^ 2);
      float r[4] = {};
      walk_together(s, rate, h, readout, lane, r, total, p.no_bits, [&] { find_inputs(group + 1); });

      float value[4], factor[4];
      load4(s.gates.value[lane.lane], value);
      load4(s.gates.factor[lane.lane], factor);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        store2(p.dgate + at + lane_at + i * x.channels, {factor[2 * i] * r[2 * i], factor[2 * i + 1] * r[2 * i + 1]});
        store2(p.gated_readout + at + lane_at + i * x.channels, {value[2 * i] * r[2 * i], value[2 * i + 1] * r[2 * i + 1]});
      }
      at += kWarpChannels;
    }
    float sum[4];
    total.reduce(lane, sum);
    total = {};
    const std::int64_t row =
        (static_cast<std::int64_t>(blockIdx.x) * x.batch + blockIdx.y) * x.tokens + (tile + lane.warp) * kTile + lane.pair;
    store4(p.source_columns + row * kStates + 4 * lane.quad, sum);
    at += static_cast<std::int64_t>(kReaderWarps * kTile) * x.channels - kChannels;
  }
}

/// Whether a call has such a kernel, `whole` being what reader_kernel calls so.
template <class T>
bool has_together(const ReaderParams<T>& p, bool whole) {
  return std::is_same_v<T, bf16> && whole && p.x.slices == 1 && p.x.states == kStates && p.x.channels % kChannels == 0 &&
         p.parts <= 2;
}
template <int kSources>
void run_together(const NativeStream& native, const dim3& grid, const ReaderParams<bf16>& p) {
  static_assert(kReaderBlocks<bf16> * (sizeof(TogetherShared<kSources>) + 1024) <= 228 * 1024);
  launch(reader_together_kernel<kSources>, grid, kReaderThreads, sizeof(TogetherShared<kSources>), native, p);
}

}  // namespace dm::cuda::scan::backward
