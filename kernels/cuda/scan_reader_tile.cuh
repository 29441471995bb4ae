// A tile at the reader of states: how the lanes of a warp share 16 channels and 16 states, and what they do with them.
#pragma once

#include "kernels/cuda/scan_backward_common.cuh"
#include "kernels/cuda/scan_math.cuh"

namespace dm::cuda::scan::backward {

/// A source's recurrence in a slice of its states: `states` and `dbc` begin at what the slice reads, its saved states and
/// its columns of B.
template <class T>
struct ReaderPart {
  Recurrence<T> source;
  int slice;
  bool first, last;  ///< of the slice's sources
};

template <class T>
struct ReaderParams {
  Extents x;
  ReaderPart<T> part[kMaxParts];
  int parts;
  const float* dbc;
  const T* gate;
  const T* z;
  const T* dout;
  T* q;
  T* dgate;
  T* gated_readout;
  float* source_columns;
  int tiles_a_block;
  std::uint32_t no_bits;  ///< 0: what the compiler cannot know (walk_tile).
};

inline constexpr int kReaderWarps = 4, kReaderThreads = 32 * kReaderWarps;
/// Of a multiprocessor.
template <class T>
inline constexpr int kReaderBlocks = std::is_same_v<T, bf16> ? 3 : 2;
inline constexpr int kReaderSlots = 2;
inline constexpr int kKeptColumns = 2;  ///< Slices and sources whose B stays for all channels of a tile.

struct ReaderLane : Lane {
  int lane = threadIdx.x % 32;  ///< Read often: kept.
};

/// For each tile of a warp its groups of channels, for each group its parts: for each slice of states the sources. The warps
/// of a block take neighbouring tiles; `tile` is the first one's.
struct ReaderTurn {
  int tile, groups, group = 0, part = 0;

  __device__ void advance(int parts) {
    if (++part < parts) return;
    part = 0;
    if (++group < groups) return;
    group = 0;
    tile += kReaderWarps;
  }
};

/// Of two tokens and two channels a vector; a row for each two tokens. No bank is met twice, by lanes that own vectors and
/// write them, nor by those that read one row of one piece or of two.
struct ReaderPlane {
  static constexpr int kRow = 10;
  float4 at[kTile / 2 * kRow + 2];

  __device__ float* row(int two, int pair) { return reinterpret_cast<float*>(&at[two * kRow + pair]); }
};

/// Of a warp's channels in a tile. A row is left out in the middle, so that lanes that read every other row meet no bank
/// twice.
template <class T>
struct ReaderRows {
  T at[kTile + 1][kWarpChannels];
  __device__ const T* row(int token) const { return at[token + token / (kTile / 2)]; }
  __device__ T* row(int token) { return at[token + token / (kTile / 2)]; }
};

/// What a warp fetches for a step.
template <class T>
struct alignas(16) ReaderSlot {
  using Rows = ReaderRows<T>;
  Rows u, dt, z, dout, gate;                // the last three for the first step of a group
  T states[2][kWarpChannels / 2][kStates];  // even channels, then odd ones
  float B[kTile][kStates];
};

/// Δ and two pieces of Δu.
struct ReaderDrive {
  ReaderPlane delta, input[2];
};
/// q, and what a lane's own elements of r are multiplied with.
struct ReaderGates {
  ReaderPlane q;
  float value[32][4], factor[32][4];
};

template <class T>
struct alignas(16) ReaderWarpShared {
  ReaderSlot<T> slot[kReaderSlots];
  ReaderDrive drive;
  /// Two pieces of B: a vector is of two tokens and of one column of two products.
  ReaderPlane B[kKeptColumns][2];
  ReaderGates gates;
};

template <class T>
struct alignas(16) ReaderShared {
  ReaderWarpShared<T> warp[kReaderWarps];
  struct alignas(16) Part {
    float rate[2][kChannels / 2][kStates];  // of even channels, then of odd ones
    float bias[kChannels];
  };
  /// One of each slice and source follows.
  __device__ Part& part(int i) { return reinterpret_cast<Part*>(this + 1)[i]; }
  static std::size_t bytes(int parts) { return sizeof(ReaderShared) + sizeof(Part) * parts; }
};

/// Δ and Δu of this lane's elements.
template <class T>
__device__ void find_drive(const ReaderRows<T>& u_rows, const ReaderRows<T>& dt_rows, const float* bias,
                           const ReaderLane& lane, float (&delta)[4], float (&input)[4]) {
  float biases[2];
  load2(bias + 2 * lane.pair, biases);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane.quad + i;
    float u[2], dt[2];
    load2(u_rows.row(t) + 2 * lane.pair, u);
    load2(dt_rows.row(t) + 2 * lane.pair, dt);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int k = 2 * i + c;
      delta[k] = backward_softplus<T>(dt[c] + biases[c]);
      input[k] = delta[k] * u[c];
    }
  }
}
__device__ inline void store_drive(ReaderDrive& to, const ReaderLane& lane, const float (&delta)[4],
                                   const float (&input)[4]) {
  float upper[4], lower[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) upper[k] = upper_piece(input[k]), lower[k] = input[k] - upper[k];
  store4(to.delta.row(lane.quad, lane.pair), delta);
  store4(to.input[0].row(lane.quad, lane.pair), upper);
  store4(to.input[1].row(lane.quad, lane.pair), lower);
}
/// The pieces of B: a lane cuts four states of token `pair`. State 4·quad + 2·j + i is column 2·quad + i of product j.
__device__ inline void cut_columns(ReaderPlane (&columns)[2], const float (&B)[4], const ReaderLane& lane) {
  float upper[4], lower[4];
#pragma unroll
  for (int n = 0; n < 4; ++n) upper[n] = upper_piece(B[n]), lower[n] = B[n] - upper[n];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int at = lane.pair % 2 * 2;
    store2(columns[0].row(lane.pair / 2, 2 * lane.quad + i) + at, {upper[i], upper[2 + i]});
    store2(columns[1].row(lane.pair / 2, 2 * lane.quad + i) + at, {lower[i], lower[2 + i]});
  }
}

/// Of this lane's elements what r is multiplied with, silu(gate) and ȳ ⊙ silu'(gate), and q.
struct ReaderFactors {
  float value[4], factor[4], q[4];

  template <class T>
  __device__ void find(const ReaderRows<T>& z_rows, const ReaderRows<T>& dout_rows, const ReaderRows<T>& gate_rows,
                       const ReaderLane& lane) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = 2 * lane.quad + i, c = 2 * lane.pair;
      float z[2], dout[2], gate[2], z_sigmoid[2], gate_sigmoid[2];
      load2(z_rows.row(t) + c, z);
      load2(dout_rows.row(t) + c, dout);
      load2(gate_rows.row(t) + c, gate);
      sigmoid_pair(z, z_sigmoid);
      sigmoid_pair(gate, gate_sigmoid);
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        const int at = 2 * i + k;
        const float dy = dout[k] * (z[k] * z_sigmoid[k]);
        value[at] = gate[k] * gate_sigmoid[k];
        factor[at] = dy * (gate_sigmoid[k] + value[at] * (1.0f - gate_sigmoid[k]));
        q[at] = dy * value[at];
      }
    }
  }
  __device__ void store(ReaderGates& to, const ReaderLane& lane) const {
    store4(to.value[lane.lane], value);
    store4(to.factor[lane.lane], factor);
    store4(to.q.row(lane.quad, lane.pair), q);
  }
};

/// C of token `pair` as this lane gives it to the products: in one piece for bfloat16, in two for float32.
template <class T>
struct ReaderColumns {
  static constexpr bool kExact = std::is_same_v<T, float>;
  float C[kExact ? 2 : 1][4];

  template <bool kWhole>
  __device__ void load(const ReaderParams<T>& p, int b, int tile, int slice, const ReaderLane& lane) {
    const Extents& x = p.x;
    const int token = tile * kTile + lane.pair, n = slice * kStates + 4 * lane.quad;
    const float* row = p.dbc + x.column_rows(b) + static_cast<std::int64_t>(token) * x.columns + x.columns - x.states + n;
    float whole[4] = {};
    if constexpr (kWhole) {
      if (n < x.states) load4(row, whole);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (token < x.tokens && n + j < x.states) whole[j] = row[j];
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      C[0][j] = kExact ? upper_piece(whole[j]) : nearest_piece(whole[j]);
      if constexpr (kExact) C[1][j] = whole[j] - C[0][j];
    }
  }
  /// h · C of all tokens' C: sums[2 · channel + i] is of token 2·quad + i.
  __device__ void read(const float (&h)[2][4], float (&sums)[4]) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float whole[4] = {h[0][2 * j], h[1][2 * j], h[0][2 * j + 1], h[1][2 * j + 1]};
      if constexpr (kExact) {
        add_exact_product_k8(sums, whole, {C[0][2 * j], C[0][2 * j + 1]}, {C[1][2 * j], C[1][2 * j + 1]});
      } else {
        add_product_k8(sums, whole, C[0][2 * j], C[0][2 * j + 1]);
      }
    }
  }
};

/// Sums over this lane's channels of q h, [token][state], and then over lanes.
struct ReaderSums {
  float dC[kTile][4] = {};

  /// Of all 16 channels so far, to the states 4·quad and on of token `pair`.
  __device__ void reduce(const ReaderLane& lane, float (&sum)[4]) const {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      float half[4], quarter[2];
#pragma unroll
      for (int t = 0; t < 4; ++t) half[t] = scatter_sum(dC[t][n], dC[t + 4][n], (lane.lane & 16) != 0, 16);
#pragma unroll
      for (int t = 0; t < 2; ++t) quarter[t] = scatter_sum(half[t], half[t + 2], (lane.lane & 8) != 0, 8);
      sum[n] = scatter_sum(quarter[0], quarter[1], (lane.lane & 4) != 0, 4);
    }
  }
};

/// A source's states through a tile: adds what they give to r of this lane's elements and to C̄. The exponentials of a step
/// are asked for two steps ahead and not before, as in scan_forward_walk.cuh: registers hold no more of them.
template <class T>
__device__ void walk_tile(ReaderWarpShared<T>& s, ReaderPlane (&columns)[2], const float (&rate)[2][4], float (&h)[2][4],
                          const ReaderColumns<T>& readout, const ReaderLane& lane, float (&r)[4], ReaderSums& total,
                          std::uint32_t no_bits) {
  float decay[2][2][4], delta[4];
  load4(s.drive.delta.row(0, lane.pair), delta);
  const auto find = [&](int i, float zero) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
#pragma unroll
      for (int n = 0; n < 4; ++n) decay[i][c][n] = exp2_fast(fmaf(delta[2 * i + c], rate[c][n], zero));
    }
  };
  find(0, 0.0f), find(1, 0.0f);
#pragma unroll
  for (int two = 0; two < kTile / 2; ++two) {
    float input[4], B[4], q[4];
    load4(s.drive.input[lane.quad / 2].row(two, lane.pair), input);
    load4(columns[lane.quad % 2].row(two, lane.pair), B);
    load4(s.gates.q.row(two, lane.pair), q);
    if (two + 1 < kTile / 2) load4(s.drive.delta.row(two + 1, lane.pair), delta);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float added[2][4], sums[4] = {};
#pragma unroll
      for (int j = 0; j < 2; ++j) product_k4(added[j], input[2 * i], input[2 * i + 1], B[2 * i + j]);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int n = 0; n < 4; ++n) h[c][n] = decay[i][c][n] * h[c][n] + added[n / 2][2 * c + n % 2];
      }
      if (two + 1 < kTile / 2) find(i, __uint_as_float(__float_as_uint(h[0][0]) & no_bits));
      readout.read(h, sums);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (lane.quad == two) r[2 * i + c] += sums[2 * c + i];
#pragma unroll
        for (int n = 0; n < 4; ++n) total.dC[2 * two + i][n] += q[2 * i + c] * h[c][n];
      }
    }
  }
}

}  // namespace dm::cuda::scan::backward
