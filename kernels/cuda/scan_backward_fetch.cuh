// What the selective scan's main backward kernel moves between tiles: raw inputs in, sums over channels out.
#pragma once

#include "kernels/cuda/scan_backward_shared.cuh"

namespace dm::cuda::scan::backward {

/// Copies of 16 columns of a [T, R+2N] projection, of which `count` exist, for eight tokens by a warp.
class ColumnCopy {
 public:
  __device__ ColumnCopy(const Extents& x, int b) : x_(x), b_(b) {}
  __device__ void run(float* to, const float* from, int tile, int count) const {
    const int thread = threadIdx.x % 32, tokens = x_.tokens - tile * kTile;
    from += x_.column_rows(b_) + static_cast<std::int64_t>(tile) * (kTile * x_.columns);
    if (x_.vector_columns) {
      const int t = thread / 4, n = thread % 4 * 4;
      copy16_async(to + thread * 4, from + t * x_.columns + n, t < tokens && n < count);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = thread / kStates + 2 * i, n = thread % kStates;
        copy4_async(to + i * 32 + thread, from + t * x_.columns + n, t < tokens && n < count);
      }
    }
  }

 private:
  const Extents& x_;
  int b_;
};

/// The block's part of B̄ and C̄ of a tile: a thread sums one column of two tokens over the warps.
template <class T>
struct ColumnPart {
  static_assert(kColumnPairs == kThreads);
  TokenPair<T>* to;
  TokenPair<T> sums;
  bool walked;

  __device__ void load(const MainParams<T>& p, const MainShared<T>& s, int slices, int tile, int end) {
    const ColumnCursor cursor = s.column_sums[threadIdx.x];
    float2 sum;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) {
      const float2 add =
          *reinterpret_cast<const float2*>(&s.sums[tile & (MainShared<T>::kSumTiles - 1)][warp][0].at[cursor.from]);
      sum = warp == 0 ? add : make_float2(sum.x + add.x, sum.y + add.y);
    }
    pack_pair(sum, sums);
    walked = tile < end;
    to =
        reinterpret_cast<TokenPair<T>*>(p.columns) + (cursor.at + static_cast<std::int64_t>(tile) * (slices * kColumnPairs));
  }
  __device__ void store() const {
    if (walked) *to = sums;
  }
};

/// Copies of a block's raw inputs. All but B and C come one tile ahead, those two: what is cut into pieces is one ahead.
template <class T>
struct Fetch {
  using Shared = MainShared<T>;
  static constexpr int kEach = RowCopy<T>::kEach, kWarpCopies = RowCopy<T>::kWarpCopies;
  const MainParams<T>& p;
  Shared& s;
  int readers;

  __device__ int first_channel() const { return static_cast<int>(blockIdx.x) * kChannels; }
  __device__ int first_column() const { return p.x.columns - 2 * p.x.states + p.slice * kStates; }
  __device__ int stride_of(int tensor) const { return tensor == 2 ? p.x.z_stride : p.x.channels; }

  /// Which warp copies C of reader k.
  static __device__ int column_warp(int k) { return 2 + k % 2; }

  /// Of copy i of a tile of an activation, of this warp's channels.
  __device__ Cursor row_cursor(const RawRows<T>& to, const T* from, int stride, int i) const {
    constexpr int kRow = RowCopy<T>::kRow;
    const int t = i / kRow, c = threadIdx.x / 32 * kWarpChannels + i % kRow * kEach, channel = first_channel() + c;
    const T* at = from + p.x.sequence(blockIdx.y, stride) + static_cast<std::int64_t>(t) * stride + channel;
    return {reinterpret_cast<const unsigned char*>(at), shared_address(&to[t][c]),
            channel < p.x.channels ? (p.x.tokens - t + kTile - 1) / kTile : 0};
  }
  __device__ Cursor column_cursor(const float* to, const float* from) const {
    const int i = threadIdx.x % 32, t = i / 4, n = i % 4 * 4;
    const float* at = from + p.x.column_rows(blockIdx.y) + static_cast<std::int64_t>(t) * p.x.columns + n;
    return {reinterpret_cast<const unsigned char*>(at), shared_address(to + 4 * i),
            n < p.x.states - p.slice * kStates ? (p.x.tokens - t + kTile - 1) / kTile : 0};
  }
  __device__ void begin() const {
    const int thread = threadIdx.x;
#pragma unroll
    for (int k = 0; k < Shared::kRowCopies; ++k) {
      const int i = k * 32 + thread % 32, tensor = i / kWarpCopies;
      s.row_cursor[k][thread] = row_cursor(s.rows[0].tensor[tensor], p.rows[tensor], stride_of(tensor), i % kWarpCopies);
    }
#pragma unroll
    for (int k = 0; k < Shared::kStateCopies; ++k) {
      const int i = (k * kThreads + thread) * kEach;
      const T* from = p.own.states + p.x.saved_states(blockIdx.y, 0, p.slice) + first_channel() * kStates + i;
      s.state_cursor[k][thread] = {reinterpret_cast<const unsigned char*>(from), shared_address(s.rows[0].states[0] + i),
                                   first_channel() + i / kStates < p.x.channels ? p.x.saved : 0};
    }
    s.gated_cursor[thread] = row_cursor(s.rows[0].gated_readout, p.gated_readout, p.x.channels, thread % kWarpCopies);
    const bool is_C = thread / 32 % 2 == 1;
    s.column_cursor[thread] =
        column_cursor(is_C ? s.raw[0].C[0] : s.raw[0].B[0], p.own.dbc + first_column() + (is_C ? p.x.states : 0));
    for (int k = 0; k < readers; ++k) {
      typename Shared::Reader& reader = s.reader(k);
      reader.row_cursor[thread] = row_cursor(reader.rows[0], p.reader[k].q, p.x.channels, thread % kWarpCopies);
      if (thread / 32 != column_warp(k)) continue;
      reader.column_cursor[thread % 32] = column_cursor(reader.raw[0][0], p.reader[k].dbc + first_column() + p.x.states);
      if (k < Shared::kFew) s.column_cursor[thread] = reader.column_cursor[thread % 32];
    }
  }

  /// Element by element, where rows are not aligned.
  __device__ void slow_row(RawRows<T>& to, const T* from, int stride, int tile) const {
    for (int i = threadIdx.x; i < kTile * kChannels; i += kThreads) {
      const int t = i / kChannels, c = i % kChannels, token = tile * kTile + t;
      const bool inside = token < p.x.tokens && first_channel() + c < p.x.channels;
      const T* at =
          from + p.x.sequence(blockIdx.y, stride) + static_cast<std::int64_t>(token) * stride + first_channel() + c;
      to[t][c] = inside ? *at : from_float<T>(0.0f);
    }
  }
  __device__ void slow_rows(int tile) const {
    typename Shared::Rows& to = s.rows[tile & 1];
    for (int i = 0; i < 4; ++i) slow_row(to.tensor[i], p.rows[i], stride_of(i), tile);
    if (p.gated_readout) slow_row(to.gated_readout, p.gated_readout, p.x.channels, tile);
    for (int k = 0; k < readers; ++k) slow_row(s.reader(k).rows[tile & 1], p.reader[k].q, p.x.channels, tile);
  }
  __device__ void rows(int tile) const {
    const int thread = threadIdx.x, buffer = tile & 1, size = sizeof(typename Shared::Rows);
    constexpr int kBytes = kTile * static_cast<int>(sizeof(T));
#pragma unroll
    for (int k = 0; k < Shared::kStateCopies; ++k) {
      s.state_cursor[k][thread].copy(tile, 0, p.x.slices * p.x.channels * kStates * static_cast<int>(sizeof(T)), buffer,
                                     size);
    }
    if (!p.x.vector) return slow_rows(tile);
#pragma unroll
    for (int k = 0; k < Shared::kRowCopies; ++k) {
      const int tensor = k * 32 < 2 * kWarpCopies ? 0 : (k * 32 + thread % 32) / kWarpCopies;
      s.row_cursor[k][thread].copy(tile, 0, stride_of(tensor) * kBytes, buffer, size);
    }
    dense_rows(tile);
  }
  /// What comes only of sources and readers.
  __device__ void dense_rows(int tile) const {
    const int thread = threadIdx.x, buffer = tile & 1, stride = p.x.channels * kTile * static_cast<int>(sizeof(T));
    if (thread % 32 >= kWarpCopies) return;
    if (p.gated_readout) Cursor::load(s.gated_cursor[thread]).copy(tile, 0, stride, buffer, sizeof(typename Shared::Rows));
    for (int k = 0; k < readers; ++k) {
      Cursor::load(s.reader(k).row_cursor[thread]).copy(tile, 0, stride, buffer, sizeof(RawRows<T>));
    }
  }
  __device__ void dense_columns(int tile) const {
    const int thread = threadIdx.x, stride = p.x.columns * kTile * static_cast<int>(sizeof(float));
    for (int k = 0; k < readers; ++k) {
      if (thread / 32 != column_warp(k)) continue;
      typename Shared::Reader& reader = s.reader(k);
      Cursor::load(reader.column_cursor[thread % 32]).copy(tile, 0, stride, tile & 3, sizeof(reader.raw[0]));
    }
  }
  __device__ void slow_columns(int tile) const {
    const ColumnCopy copy(p.x, blockIdx.y);
    const int warp = threadIdx.x / 32, count = p.x.states - p.slice * kStates;
    typename Shared::Raw& to = s.raw[tile & 3];
    if (warp == 0) copy.run(to.B[0], p.own.dbc + first_column(), tile, count);
    if (warp == 1) copy.run(to.C[0], p.own.dbc + first_column() + p.x.states, tile, count);
    for (int k = 0; k < readers; ++k) {
      if (warp != column_warp(k)) continue;
      copy.run(s.reader(k).raw[tile & 3][0], p.reader[k].dbc + first_column() + p.x.states, tile, count);
    }
  }
  __device__ void columns(int tile) const {
    if (!p.x.vector_columns) return slow_columns(tile);
    const int thread = threadIdx.x, stride = p.x.columns * kTile * static_cast<int>(sizeof(float));
    if (thread < 64) s.column_cursor[thread].copy(tile, 0, stride, tile & 3, sizeof(typename Shared::Raw));
    dense_columns(tile);
  }
  /// Cuts a tile's B and C of float32 into pieces.
  __device__ void cut(int tile) const {
    if constexpr (Shared::kExact) {
      const int thread = threadIdx.x % 64, half = threadIdx.x / 64;
      typename Shared::Raw& raw = s.raw[tile & 3];
      typename Shared::Cut& to = s.cut[tile & 1];
      (half == 0 ? to.B : to.C).fill(half == 0 ? raw.B : raw.C, thread);
      for (int k = half; k < readers; k += 2) s.reader(k).C[tile & 1].fill(s.reader(k).raw[tile & 3], thread);
    }
  }
  /// All that the steps of `tile` do for those before it, which begin with `begin`.
  __device__ void before(int tile, int begin) const {
    if (tile <= begin) return;
    rows(tile - 1);
    if (tile - 1 > begin) columns(tile - 2);
    cut(tile - 1);
  }
  __device__ void dense_before(int tile, int begin) const {
    if (tile <= begin) return;
    dense_rows(tile - 1);
    if (tile - 1 > begin) dense_columns(tile - 2);
  }
};

}  // namespace dm::cuda::scan::backward
