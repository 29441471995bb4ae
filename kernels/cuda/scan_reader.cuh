// The reader's part of the scan's backward: what the sources' states give to q, dgate, C̄ and to the output.
//
// The sources' states of each tile of eight tokens are computed again from their saved states, all tiles in parallel; their
// sum over the sources stays in registers. Writes q, dgate, the sources' part of C̄, and silu(gate) ⊙ r to du, where the main
// kernel reads it before it overwrites it.
#pragma once

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

template <class T>
struct alignas(16) ReaderShared {
  struct Stage {
    T u[kTile][kChannels], dt[kTile][kChannels];
    T states[kChannels][kStates];
    Orders B[kTile];
  } stage[2];
  Orders C[2][kTile];  // of this slice and of the next
  T z[kTile][kChannels], dout[kTile][kChannels], gate[kTile][kChannels];
  float2 drive[kTile][kChannels];
  float q[kTile][kChannels], gate_value[kTile][kChannels], dgate_factor[kTile][kChannels];
  float readout[kTile][kSumRow];
  float columns[kTile][kWarps][kStates];
  struct alignas(16) Part {
    float rate[kChannels][kStates];
    float bias[kChannels];
  };
  /// One of each slice and source follows.
  __device__ Part& part(int i) { return reinterpret_cast<Part*>(this + 1)[i]; }
  static std::size_t bytes(int parts) { return sizeof(ReaderShared) + sizeof(Part) * parts; }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 3) reader_kernel(const __grid_constant__ ReaderParams<T> p) {
  using Shared = ReaderShared<T>;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  Shared& s = *reinterpret_cast<Shared*>(shared_bytes);
  const Extents& x = p.x;
  const int b = blockIdx.y, first_channel = blockIdx.x * kChannels, parts = x.slices * p.sources;
  const Lane lane;
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

  // Turns: for each tile its slices, for each slice the sources.
  const auto fetch = [&](int turn) {
    const int tile = turn / parts, part = turn % parts, slice = part / p.sources, token = tile * kTile;
    const Recurrence<T>& source = p.source[part % p.sources];
    typename Shared::Stage& stage = s.stage[turn & 1];
    const int count = x.states - slice * kStates, first_column = x.columns - 2 * x.states + slice * kStates;
    const std::int64_t sequence = x.sequence(b);
    copy_rows<kTile>(stage.u[0], source.u + sequence, x, token, first_channel);
    copy_rows<kTile>(stage.dt[0], source.dt + sequence, x, token, first_channel);
    copy_states(stage.states[0], source.states + x.saved_states(b, tile, slice), x, first_channel);
    const int thread = threadIdx.x % 64;
    if (threadIdx.x < 64) {
      copy_orders(stage.B[0][0], kOrders * kStates, source.dbc + x.column_rows(b), x, token, first_column, count, thread);
    } else if (part % p.sources == 0) {
      copy_orders(s.C[(tile * x.slices + slice) & 1][0][0], kOrders * kStates, p.dbc + x.column_rows(b), x, token,
                  first_column + x.states, count, thread);
    }
    if (part == 0) {
      copy_rows<kTile>(s.z[0], p.z + sequence, x, token, first_channel);
      copy_rows<kTile>(s.dout[0], p.dout + sequence, x, token, first_channel);
      copy_rows<kTile>(s.gate[0], p.gate + sequence, x, token, first_channel);
    }
  };

  const auto prepare = [&](int turn) {
    const int tile = turn / parts, part = turn % parts;
    const typename Shared::Stage& stage = s.stage[turn & 1];
    float u[4], delta[4], bias[4];
    load4(&stage.u[row][quad], u);
    load4(&stage.dt[row][quad], delta);
    load4(&s.part(part).bias[quad], bias);
#pragma unroll
    for (int i = 0; i < 4; ++i) delta[i] = tile * kTile + row < x.tokens ? Softplus(delta[i] + bias[i]).value : 0.0f;
    float4* drive = reinterpret_cast<float4*>(&s.drive[row][quad]);
    drive[0] = make_float4(delta[0], delta[0] * u[0], delta[1], delta[1] * u[1]);
    drive[1] = make_float4(delta[2], delta[2] * u[2], delta[3], delta[3] * u[3]);
    if (part > 0) return;
    float z[4], dout[4], gate[4], q[4], dgate_factor[4];
    load4(&s.z[row][quad], z);
    load4(&s.dout[row][quad], dout);
    load4(&s.gate[row][quad], gate);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float dy = dout[i] * (z[i] * sigmoid(z[i])), g = sigmoid(gate[i]);
      dgate_factor[i] = dy * (g * (1.0f + gate[i] * (1.0f - g)));
      gate[i] *= g;
      q[i] = dy * gate[i];
    }
    store4(&s.q[row][quad], q);
    store4(&s.gate_value[row][quad], gate);
    store4(&s.dgate_factor[row][quad], dgate_factor);
  };

  // After the last source of a slice, the block's part of C̄; after the last slice of a tile, q, dgate and silu(gate) ⊙ r.
  const auto finish = [&](int turn) {
    const int tile = turn / parts, slice = turn % parts / p.sources;
    const int t = threadIdx.x / kStates, n = threadIdx.x % kStates;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += s.columns[t][w][n];
    if (tile * kTile + t < x.tokens) {
      const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * x.batch + b) * x.tokens + tile * kTile + t;
      p.source_columns[(at * x.slices + slice) * kStates + n] = sum;
    }
    if (slice < x.slices - 1 || tile * kTile + row >= x.tokens) return;
    float r[4], q[4], gate[4], dgate[4];
    load4(&s.readout[row][quad], r);
    load4(&s.q[row][quad], q);
    load4(&s.gate_value[row][quad], gate);
    load4(&s.dgate_factor[row][quad], dgate);
#pragma unroll
    for (int i = 0; i < 4; ++i) gate[i] *= r[i], dgate[i] *= r[i];
    const std::int64_t at = x.sequence(b) + static_cast<std::int64_t>(tile * kTile + row) * x.channels;
    store_row(p.q + at, first_channel + quad, x, q);
    store_row(p.dgate + at, first_channel + quad, x, dgate);
    store_row(p.gated_readout + at, first_channel + quad, x, gate);
  };

  float h[kTile][2][4];  // Σ_s h^s of the slice
  const auto add_states = [&](int turn) {
    const typename Shared::Stage& stage = s.stage[turn & 1];
    const int part = turn % parts;
    const bool first = part % p.sources == 0;
    float state[2][4], rate[2][4];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      load_states(stage.states[lane.local[c]], lane, state[c]);
      load_states(s.part(part).rate[lane.local[c]], lane, rate[c]);
    }
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      float B[4];
      load4(&stage.B[t][lane.order][lane.first_state], B);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float2 drive = s.drive[t][lane.local[c]];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          state[c][j] = exp2_fast(drive.x * rate[c][j]) * state[c][j] + drive.y * B[j];
          h[t][c][j] = first ? state[c][j] : h[t][c][j] + state[c][j];
        }
      }
    }
  };
  const auto read_out = [&](int turn) {
    const int tile = turn / parts, slice = turn % parts / p.sources;
    const Orders* C_rows = s.C[(tile * x.slices + slice) & 1];
    float even = 0.0f, even_column = 0.0f;
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      float C[4], readout[2] = {}, dC[4] = {};
      load4(&C_rows[t][lane.order][lane.first_state], C);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float q = s.q[t][lane.local[c]];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          readout[c] += C[j] * h[t][c][j];
          dC[j] += q * h[t][c][j];
        }
      }
      const float sum = readout[0] + exchange(readout[1], 1), column = sum_states(dC);
      if (t % 2 == 0) {
        even = sum, even_column = column;
        continue;
      }
      const float total = (lane.upper_group() ? sum : even) + exchange(lane.upper_group() ? even : sum, 2);
      float& readout_at = s.readout[t - 1 + lane.group / 2][lane.local[0]];
      readout_at = slice > 0 ? readout_at + total : total;
      s.columns[t - 1 + lane.lane / 16][lane.warp][lane.state(0)] =
          (lane.upper_half() ? column : even_column) + exchange(lane.upper_half() ? even_column : column, 16);
    }
  };

  const int tiles = (x.tokens + kTile - 1) / kTile;
  const int begin = blockIdx.z * p.tiles_a_block * parts,
            end = min((static_cast<int>(blockIdx.z) + 1) * p.tiles_a_block, tiles) * parts;
  fetch(begin);
  for (int turn = begin; turn < end; ++turn) {
    wait_for_copies();
    __syncthreads();  // the turn's inputs have arrived, the sums of the last one are complete
    if (turn > begin && turn % p.sources == 0) finish(turn - 1);
    prepare(turn);
    __syncthreads();
    if (turn + 1 < end) fetch(turn + 1);
    add_states(turn);
    if ((turn + 1) % p.sources == 0) read_out(turn);
  }
  __syncthreads();
  finish(end - 1);
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
  p.tiles_a_block = 16;
  const dim3 grid(static_cast<unsigned>(blocks_of(x.channels)), static_cast<unsigned>(x.batch),
                  static_cast<unsigned>(pieces(pieces(x.tokens, kTile), p.tiles_a_block)));
  launch(reader_kernel<T>, grid, ReaderShared<T>::bytes(parts), native, p);
}

}  // namespace dm::cuda::scan::backward
