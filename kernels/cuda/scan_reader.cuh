// The reader's part of the scan's backward: what the sources' states give to q, dgate, C̄ and to the output.
//
// The sources' states of each tile of eight tokens are computed again from their saved states, all tiles in parallel; their
// sum over the sources stays in registers. Writes q, dgate, the sources' part of C̄, and silu(gate) ⊙ r to du, where the main
// kernel reads it before it overwrites it.
#pragma once

#include <limits>

#include "kernels/cuda/scan_lanes.cuh"

namespace dm::cuda::scan::backward {

inline constexpr int kMaxSources = 32;

template <class T>
struct ReaderParams {
  Extents x;
  Recurrence<T> source[kMaxSources];
  int sources;
  const float* dbc;
  const T* gate;
  const T* z;
  const T* dout;
  T* q;
  T* dgate;
  T* gated_readout;
  float* source_columns;
  int tiles_a_block;
};

/// Sums over channels that a product leaves apart.
inline constexpr int kReaderParts = kThreads / 16;

/// For each tile its slices, for each slice the sources.
struct ReaderTurn {
  int tile, slice = 0, source = 0;

  __device__ bool last_source(int sources) const { return source == sources - 1; }
  __device__ void advance(int slices, int sources) {
    if (++source < sources) return;
    source = 0;
    if (++slice < slices) return;
    slice = 0;
    ++tile;
  }
};

template <class T>
struct alignas(16) ReaderShared {
  struct Rows {
    T u[kTile][kChannels], dt[kTile][kChannels];
    T z[kTile][kChannels], dout[kTile][kChannels], gate[kTile][kChannels];  // of a tile's first turn
  } rows[2];
  struct Stage {
    float B[kTile][kStates], C[kTile][kStates];
    T states[kChannels][kStates];
  } stage[2];
  struct Drive {
    float delta[kTile][kChannels], input[kTile][kChannels];
  } drive[2];
  struct Gating {
    float q[kTile][kChannels], gate_value[kTile][kChannels], dgate_factor[kTile][kChannels];
  } gating[2];
  float readout[2][kTile][kChannels + 16];  // half of the banks apart
  float columns[2][kTile][kReaderParts * kStates + 16];
  struct alignas(16) Part {
    float rate[kChannels][kStates];
    float bias[kChannels];
  };
  /// One of each slice and source follows.
  __device__ Part& part(int i) { return reinterpret_cast<Part*>(this + 1)[i]; }
  static std::size_t bytes(int parts) { return sizeof(ReaderShared) + sizeof(Part) * parts; }
};

/// Of a multiprocessor.
inline constexpr int kReaderBlocks = 3;
template <class T>
__global__ void __launch_bounds__(kThreads, kReaderBlocks) reader_kernel(const __grid_constant__ ReaderParams<T> p) {
  using Shared = ReaderShared<T>;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  Shared& s = *reinterpret_cast<Shared*>(shared_bytes);
  const Extents& x = p.x;
  const int b = blockIdx.y, first_channel = blockIdx.x * kChannels, parts = x.slices * p.sources;
  // A thread owns two channels: local[c] in register c, swapped in lanes with bit 2 so that each keeps the first one's sums.
  const Lane lane;
  const int channel_part = threadIdx.x / 16, swap = lane.upper4() ? 1 : 0;
  const int local[2] = {(channel_part * 4 + lane.lane % 4) * 2 + swap, (channel_part * 4 + lane.lane % 4) * 2 + 1 - swap};
  const int row = threadIdx.x / 16, quad = threadIdx.x % 16 * 4;

  for (int part = 0; part < parts; ++part) {
    const Recurrence<T>& source = p.source[part % p.sources];
    for (int i = threadIdx.x; i < kChannels * kStates; i += kThreads) {
      const int n = part / p.sources * kStates + i % kStates;
      s.part(part).rate[i / kStates][i % kStates] = rate_of(source, x, first_channel + i / kStates, n);
    }
    if (threadIdx.x < kChannels) {
      const int c = first_channel + static_cast<int>(threadIdx.x);
      s.part(part).bias[threadIdx.x] = c < x.channels ? source.dt_bias[c] : 0.0f;
    }
  }

  const RowCopy<T> row_copy(x, b, first_channel);
  const StateCopy<T, kThreads> state_copy(x, b, first_channel);
  const ColumnCopy column_copy(x, b);
  // Rows of `from0` are `stride` apart.
  const auto fetch_two = [&](T* to0, const T* from0, int stride, T* to1, const T* from1, int tile) {
    if (!x.vector) {
      copy_rows<kTile>(to0, from0, stride, x, b, tile * kTile, first_channel);
      copy_rows<kTile>(to1, from1, x.channels, x, b, tile * kTile, first_channel);
    } else if constexpr (2 * RowCopy<T>::kCopies == kThreads) {
      const bool second = threadIdx.x >= kThreads / 2;
      row_copy.run((second ? to1 : to0) + threadIdx.x % 64 * RowCopy<T>::kEach, second ? from1 : from0,
                   second ? x.channels : stride, tile);
    } else {
      row_copy.run(to0 + threadIdx.x * RowCopy<T>::kEach, from0, stride, tile);
      row_copy.run(to1 + threadIdx.x * RowCopy<T>::kEach, from1, x.channels, tile);
    }
  };
  const auto fetch_rows = [&](const ReaderTurn& turn, int parity) {
    const Recurrence<T>& source = p.source[turn.source];
    typename Shared::Rows& rows = s.rows[parity];
    fetch_two(rows.u[0], source.u, x.channels, rows.dt[0], source.dt, turn.tile);
    if (turn.source > 0 || turn.slice > 0) return;
    fetch_two(rows.z[0], p.z, x.z_stride, rows.dout[0], p.dout, turn.tile);
    fetch_two(rows.gate[0], p.gate, x.channels, rows.gate[0], p.gate, turn.tile);
  };
  const auto fetch_stage = [&](const ReaderTurn& turn, int parity) {
    const Recurrence<T>& source = p.source[turn.source];
    typename Shared::Stage& stage = s.stage[parity];
    const int first_column = x.columns - 2 * x.states + turn.slice * kStates, count = x.states - turn.slice * kStates;
    state_copy.run(stage.states[0], source.states, turn.tile, turn.slice);
    if (threadIdx.x >= 96) {
      column_copy.run(stage.B[0], source.dbc + first_column, turn.tile, count);
    } else if (threadIdx.x >= 64 && turn.last_source(p.sources)) {
      column_copy.run(stage.C[0], p.dbc + first_column + x.states, turn.tile, count);
    }
  };

  const auto prepare = [&](const ReaderTurn& turn, int parity) {
    const typename Shared::Rows& rows = s.rows[parity];
    float u[4], delta[4], bias[4];
    load4(&rows.u[row][quad], u);
    load4(&rows.dt[row][quad], delta);
    load4(&s.part(turn.slice * p.sources + turn.source).bias[quad], bias);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      delta[i] = turn.tile * kTile + row < x.tokens ? Softplus(delta[i] + bias[i]).value : 0.0f;
      u[i] *= delta[i];
    }
    store4(&s.drive[parity].delta[row][quad], delta);
    store4(&s.drive[parity].input[row][quad], u);
    if (turn.source > 0 || turn.slice > 0) return;
    typename Shared::Gating& gating = s.gating[turn.tile & 1];
    float z[4], dout[4], gate[4], q[4], dgate_factor[4];
    load4(&rows.z[row][quad], z);
    load4(&rows.dout[row][quad], dout);
    load4(&rows.gate[row][quad], gate);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float dy = dout[i] * (z[i] * sigmoid(z[i])), g = sigmoid(gate[i]);
      dgate_factor[i] = dy * (g * (1.0f + gate[i] * (1.0f - g)));
      gate[i] *= g;
      q[i] = dy * gate[i];
    }
    store4(&gating.q[row][quad], q);
    store4(&gating.gate_value[row][quad], gate);
    store4(&gating.dgate_factor[row][quad], dgate_factor);
  };

  // After the last source of a slice, the block's part of C̄; after the last slice of a tile, q, dgate and silu(gate) ⊙ r.
  const auto finish = [&](const ReaderTurn& turn) {
    const int tile = turn.tile, slice = turn.slice;
    const int t = threadIdx.x / kStates, n = threadIdx.x % kStates;
    if (tile * kTile + row >= x.tokens) return;
    float sum = 0.0f;
#pragma unroll
    for (int part = 0; part < kReaderParts; ++part) sum += s.columns[(tile * x.slices + slice) & 1][t][part * kStates + n];
    const std::int64_t block_row = (static_cast<std::int64_t>(blockIdx.x) * x.batch + b) * x.tokens + tile * kTile + t;
    p.source_columns[(block_row * x.slices + slice) * kStates + n] = sum;
    if (slice < x.slices - 1) return;
    const typename Shared::Gating& gating = s.gating[tile & 1];
    float r[4], q[4], gate[4], dgate[4];
    load4(&s.readout[tile & 1][row][quad], r);
    load4(&gating.q[row][quad], q);
    load4(&gating.gate_value[row][quad], gate);
    load4(&gating.dgate_factor[row][quad], dgate);
#pragma unroll
    for (int i = 0; i < 4; ++i) gate[i] *= r[i], dgate[i] *= r[i];
    const std::int64_t at = x.sequence(b) + static_cast<std::int64_t>(tile * kTile + row) * x.channels;
    store_row(p.q + at, first_channel + quad, x, q);
    store_row(p.dgate + at, first_channel + quad, x, dgate);
    store_row(p.gated_readout + at, first_channel + quad, x, gate);
  };

  float h[kTile][2][4];  // Σ_s h^s of the slice
  const auto add_states = [&](const ReaderTurn& turn, int parity, auto first) {
    const typename Shared::Stage& stage = s.stage[parity];
    const typename Shared::Drive& drive = s.drive[parity];
    const typename Shared::Part& part = s.part(turn.slice * p.sources + turn.source);
    float state[2][4], rate[2][4];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      load4(&stage.states[local[c]][lane.first_state], state[c]);
      load4(&part.rate[local[c]][lane.first_state], rate[c]);
    }
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      float B[4];
      load4(&stage.B[t][lane.first_state], B);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float delta = drive.delta[t][local[c]], input = drive.input[t][local[c]];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          state[c][j] = exp2_fast(delta * rate[c][j]) * state[c][j] + input * B[j];
          h[t][c][j] = first ? state[c][j] : h[t][c][j] + state[c][j];
        }
      }
    }
  };
  const typename ChannelSums<T>::Indicator earlier_steps(0), later_steps(1);
  const auto read_out = [&](const ReaderTurn& turn, int parity) {
    const int tile = turn.tile, slice = turn.slice;
    const auto& C_rows = s.stage[parity].C;
    const typename Shared::Gating& gating = s.gating[tile & 1];
    float halves[2], dC[2][4];
    ChannelSums<T> columns;
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      float C[4], readout[2] = {};
      load4(&C_rows[t][lane.first_state], C);
#pragma unroll
      for (int j = 0; j < 4; ++j) dC[t % 2][j] = 0.0f;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float q = gating.q[t][local[c]];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          readout[c] += C[j] * h[t][c][j];
          dC[t % 2][j] += q * h[t][c][j];
        }
      }
      halves[t % 2] = readout[0] + exchange(readout[1], 4);
      if (t % 2 == 0) continue;
      const float total = scatter_sum(halves[0], halves[1], lane.upper8(), 8);
      float& readout_at = s.readout[tile & 1][t - 1 + lane.upper8()][local[0]];
      readout_at = slice > 0 ? readout_at + total : total;
      columns.add(dC[0], dC[1], t % 4 == 1 ? earlier_steps : later_steps);
      if (t % 4 == 1) continue;
      float* to = &s.columns[(tile * x.slices + slice) & 1][t - 3 + 2 * columns.call()]
                            [channel_part * kStates + lane.first_state + columns.column()];
      *reinterpret_cast<float2*>(to) = make_float2(columns.sum[0], columns.sum[1]);
      *reinterpret_cast<float2*>(to + sizeof s.columns[0][0] / sizeof(float)) = make_float2(columns.sum[2], columns.sum[3]);
      columns = {};
    }
  };

  // What is fetched before one barrier is prepared before the next one, is swept, and finished after that.
  const int tiles = (x.tokens + kTile - 1) / kTile;
  const int first_tile = blockIdx.z * p.tiles_a_block, turns = min(p.tiles_a_block, tiles - first_tile) * parts;
  ReaderTurn fetched{first_tile}, prepared = fetched, now = fetched, before = fetched;
  fetch_rows(fetched, 0);
  for (int turn = -1; turn <= turns; ++turn) {
    wait_for_copies();
    __syncthreads();
    before = now, now = prepared, prepared = fetched;
    fetched.advance(x.slices, p.sources);
    const int parity = turn & 1;
    if (turn + 2 < turns) fetch_rows(fetched, parity);
    if (turn + 1 < turns) fetch_stage(prepared, 1 - parity);
    if (turn > 0 && before.last_source(p.sources)) finish(before);
    if (turn + 1 < turns) prepare(prepared, 1 - parity);
    if (turn < 0 || turn == turns) continue;
    if (now.source == 0) {
      add_states(now, parity, std::true_type{});
    } else {
      add_states(now, parity, std::false_type{});
    }
    if (now.last_source(p.sources)) read_out(now, parity);
  }
}

template <class T>
void run_reader(const NativeStream& native, const ScanBackwardArgs& args, const Extents& x, float* source_columns) {
  ReaderParams<T> p{};
  p.x = x;
  p.sources = static_cast<int>(args.sources.size());
  const int parts = x.slices * p.sources;
  require(p.sources <= kMaxSources && ReaderShared<T>::bytes(parts) <= kMaxShared,
          "the selective scan's backward on a GPU has no shared memory for so many states of sources");
  for (int s = 0; s < p.sources; ++s) p.source[s] = view<T>(args.sources[static_cast<std::size_t>(s)]);
  p.dbc = args.own.dbc.as<float>();
  p.gate = pointer<const T>(args.gate), p.z = pointer<const T>(args.z), p.dout = pointer<const T>(args.dout);
  p.q = pointer<T>(args.q), p.dgate = pointer<T>(args.dgate), p.gated_readout = pointer<T>(args.du);
  p.source_columns = source_columns;
  // Pieces of time: as many as give the shortest turn of the last block, with two tiles for its start.
  const std::int64_t tiles = pieces(x.tokens, kTile), blocks = blocks_of(x.channels) * x.batch;
  std::int64_t shortest = std::numeric_limits<std::int64_t>::max();
  for (std::int64_t count = 1; count <= std::min<std::int64_t>(tiles, 64); ++count) {
    const std::int64_t each = pieces(tiles, count), waves = pieces(blocks * count, native.multiprocessors * kReaderBlocks);
    if (waves * (each + 2) >= shortest) continue;
    shortest = waves * (each + 2);
    p.tiles_a_block = static_cast<int>(each);
  }
  const dim3 grid(static_cast<unsigned>(blocks_of(x.channels)), static_cast<unsigned>(x.batch),
                  static_cast<unsigned>(pieces(tiles, p.tiles_a_block)));
  launch(reader_kernel<T>, grid, ReaderShared<T>::bytes(parts), native, p);
}

}  // namespace dm::cuda::scan::backward
