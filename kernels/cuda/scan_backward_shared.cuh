// What a block of the selective scan's main backward kernel keeps in shared memory, and what of it a thread keeps there.
#pragma once

#include "kernels/cuda/scan_adjoint.cuh"
#include "kernels/cuda/scan_backward_sums.cuh"
#include "kernels/cuda/warp_barrier.cuh"

namespace dm::cuda::scan::backward {

/// Rows of raw activations: lanes read rows two apart, which must meet no bank twice.
template <class T>
inline constexpr int kRawRow = kChannels + 16 / static_cast<int>(sizeof(T));
template <class T>
using RawRows = T[kTile][kRawRow<T>];

/// Elements before the first of a thread's outputs of the first tile.
struct alignas(16) OutCursor {
  std::int64_t at, at_dz;
};
/// Where a thread's sums over channels go for the first tile, where their parts lie, and where it leaves its own parts.
struct alignas(16) ColumnCursor {
  std::int64_t at;
  int from, place;
};

template <class T>
struct alignas(16) MainShared {
  static constexpr bool kExact = std::is_same_v<T, float>;
  using First = typename Factors<T>::First;
  struct Rows {
    RawRows<T> tensor[4], gated_readout;  // u, dt, z, dout
    T states[kChannels][kStates];
  } rows[2];
  struct Raw {
    float B[kTile][kStates], C[kTile][kStates];
  } raw[4];
  struct Cut {
    typename Factors<T>::Cut B, C;
  } cut[2];
  /// One tile's are added up while the next one's come; between warps a tile apart, two tiles later, while the one ahead
  /// leaves those of yet another tile.
  static constexpr int kSumTiles = kExact ? 2 : 4;
  ColumnSums sums[kSumTiles][kWarps][2];  // B̄, C̄
  WarpBarrier begun;                      // By all warps; phases are the tiles of a walk.
  /// What lanes of a warp tell one another, and what a lane keeps of its elements until the sums over states have arrived.
  struct Warp {
    Plane delta;
    First input, dy;                                             // Δu, ȳ
    typename WeightedSums<T>::Weight input_weights, dy_weights;  // the same
    float4 slope[32], dz_factor[32], gating[32], dy_kept[32];    // softplus', dout ⊙ silu'(z), silu(z), ȳ
    float4 readout[32];
    float4 drate[2][32];  // Σ_t of Δ λ exp(ΔA) h, of a lane's states
  } warp[kWarps];
  static constexpr int kRowCopies = 4 * RowCopy<T>::kCopies / kThreads;
  static constexpr int kStateCopies = kChannels * kStates * static_cast<int>(sizeof(T)) / 16 / kThreads;
  Cursor row_cursor[kRowCopies][kThreads], state_cursor[kStateCopies][kThreads], column_cursor[kThreads],
      gated_cursor[kThreads];
  OutCursor out_cursor[kThreads];
  ColumnCursor column_sums[kThreads];
  float4 totals[kThreads];   // a lane's part of dskip and dt_bias of its two channels
  float4 vectors[kThreads];  // skip and dt_bias of them
  /// Pieces of q are terms of a product: in float32 two of a reader, in bfloat16 one.
  struct alignas(16) Reader {
    RawRows<T> rows[2];
    using Raw = float[kTile][kStates];
    Raw raw[4];
    typename Factors<T>::Cut C[2];
    Plane q[kWarps][kExact ? 2 : 1];
    Cursor row_cursor[kThreads], column_cursor[32];
  };
  /// Readers follow.
  __device__ Reader& reader(int k) { return reinterpret_cast<Reader*>(this + 1)[k]; }
  /// Products of readers alone: in bfloat16 of all but the first three.
  static __host__ __device__ constexpr int products(int readers) { return kExact ? readers : readers / 4; }
  static constexpr int kFew = kExact ? 1 : 2;  ///< For which there is a kernel.
  static __host__ __device__ constexpr int places(int readers) { return kExact ? readers : readers + readers % 2; }
  /// For which a block has shared memory.
  static int most_readers() {
    int readers = 0;
    while (bytes(readers + 1) <= kMaxShared) ++readers;
    return readers;
  }
  static std::size_t bytes(int readers) { return sizeof(MainShared) + sizeof(Reader) * places(readers); }
};

/// The first of a thread's two channels.
__device__ inline int channel_of(const Lane& lane) {
  return static_cast<int>(blockIdx.x) * kChannels + lane.channel();
}

}  // namespace dm::cuda::scan::backward
