// What the kernels of the adjoint of the selective scan are given, and what of it the first pass over segments fetches.
#pragma once

#include "kernels/cuda/scan_backward_common.cuh"
#include "kernels/cuda/scan_math.cuh"
#include "kernels/cuda/scan_segments.cuh"

namespace dm::cuda::scan::backward {

inline constexpr int kMaxReaders = static_cast<int>(kMaxScanReaders);

template <class T>
struct Reader {
  const T* q;
  const float* dbc;
};

template <class T>
struct MainParams {
  Extents x;
  Recurrence<T> own;
  Reader<T> reader[kMaxReaders];
  int readers;
  const float* skip;
  const T* rows[4];        ///< u, dt, z, dout
  const T* gated_readout;  ///< silu(gate) ⊙ r, the same memory as du; null without sources.
  T* du;
  T* ddt;
  T* dz;
  T* out;          ///< May be dout; du where nobody wants it, which is written after it.
  float* columns;  ///< The parts of scratch (scan_layout.h).
  float* rates;
  float* vectors;
  float* planes;
  Segments segments;  ///< What enters them from behind, when there are several.
  Segments pieces;    ///< Of which the first pass finds the ends; they cut each segment into the same number.
  int slice, tiles_a_segment, tiles_a_piece;
};

/// Three stages: a tile is walked while the next one's Δ and ȳ are made and the one after it is fetched.
template <class T>
struct alignas(16) SegmentShared {
  static constexpr int kStages = 3;
  struct Stage {
    T dt[kTile][kChannels], z[kTile][kChannels], dout[kTile][kChannels];
    float C[kTile][kStates];
  } stage[kStages];
  float2 drive[2][kTile][kChannels];  // Δ, ȳ
  float bias[kChannels];
  static constexpr int kByProducts = 1;  ///< Exponentials of a lane's that are made by products.
  struct alignas(16) ReaderStage {
    T q[kTile][kChannels];
    float C[kTile][kStates];
  };
  /// As many of each reader as there are stages follow.
  __device__ ReaderStage& reader(int k, int slot) { return reinterpret_cast<ReaderStage*>(this + 1)[kStages * k + slot]; }
  static std::size_t bytes(int readers) { return sizeof(SegmentShared) + sizeof(ReaderStage) * kStages * readers; }
};

/// This thread's share of the copies of each tile: 16 bytes of Δ's raw rows, of z and dout, and of C.
template <class T>
class SegmentCopies {
  using Shared = SegmentShared<T>;
  static constexpr int kRows = RowCopy<T>::kCopies, kColumns = kTile * kStates / 4;
  static constexpr int kRow = kRows / kTile;
  static constexpr int kRounds = static_cast<int>(pieces(3 * kRows + kColumns, kThreads));

 public:
  __device__ SegmentCopies(const MainParams<T>& p, Shared& s) {
    const Extents& x = p.x;
    typename Shared::Stage& to = s.stage[0];
#pragma unroll
    for (int k = 0; k < kRounds; ++k) {
      const int i = k * kThreads + static_cast<int>(threadIdx.x), tensor = i / kRows;
      if (tensor < 3) {
        const int t = i % kRows / kRow, c = i % kRow * RowCopy<T>::kEach;
        const int channel = static_cast<int>(blockIdx.x) * kChannels + c, stride = tensor == 1 ? x.z_stride : x.channels;
        const T* from = tensor == 0 ? p.own.dt : p.rows[1 + tensor];
        from += x.sequence(blockIdx.y, stride) + static_cast<std::int64_t>(t) * stride + channel;
        T* const row = tensor == 0 ? to.dt[t] : tensor == 1 ? to.z[t] : to.dout[t];
        set(k, from, row + c, stride * kTile * static_cast<int>(sizeof(T)), x.tokens - t, channel < x.channels);
      } else {
        const int t = (i - 3 * kRows) / 4, n = i % 4 * 4, state = p.slice * kStates + n;
        const float* from = p.own.dbc + x.column_rows(blockIdx.y) + static_cast<std::int64_t>(t) * x.columns;
        set(k, from + (x.columns - x.states + state), to.C[t] + n, x.columns * kTile * static_cast<int>(sizeof(float)),
            x.tokens - t, state < x.states);
      }
    }
  }
  __device__ void run(int tile, int slot) const {
#pragma unroll
    for (int k = 0; k < kRounds; ++k) {
      const bool mine = (k + 1) * kThreads <= 3 * kRows + kColumns || static_cast<int>(threadIdx.x) < kLast;
      cursor_[k].copy(tile, 0, stride_[k], slot, sizeof(typename Shared::Stage), mine);
    }
  }

 private:
  static constexpr int kLast = 3 * kRows + kColumns - (kRounds - 1) * kThreads;  ///< Threads in the last round.

  /// `stride` bytes from one tile to the next; `tokens` are left behind this row of the first one.
  __device__ void set(int k, const void* from, const void* to, int stride, int tokens, bool inside) {
    stride_[k] = stride;
    cursor_[k] = {static_cast<const unsigned char*>(from), shared_address(to), inside ? (tokens + kTile - 1) / kTile : 0};
  }

  Cursor cursor_[kRounds];
  int stride_[kRounds];
};
/// Where rows or columns are not aligned.
template <class T>
struct SlowSegmentCopies {
  const MainParams<T>& p;
  SegmentShared<T>& s;

  __device__ void run(int tile, int slot) const {
    typename SegmentShared<T>::Stage& stage = s.stage[slot];
    const Extents& x = p.x;
    const int b = blockIdx.y, token = tile * kTile, channel = static_cast<int>(blockIdx.x) * kChannels;
    copy_rows<kTile>(stage.dt[0], p.own.dt, x.channels, x, b, token, channel);
    copy_rows<kTile>(stage.z[0], p.rows[2], x.z_stride, x, b, token, channel);
    copy_rows<kTile>(stage.dout[0], p.rows[3], x.channels, x, b, token, channel);
    copy_columns<kTile>(stage.C[0], p.own.dbc + x.column_rows(b), x, token, x.columns - x.states + p.slice * kStates,
                        x.states - p.slice * kStates);
  }
};

}  // namespace dm::cuda::scan::backward
