// What a block of the reader of states shares where all is aligned, and the copies that its warps make ahead.
#pragma once

#include "kernels/cuda/scan_backward_sums.cuh"
#include "kernels/cuda/scan_reader_fetch.cuh"

namespace dm::cuda::scan::backward {

/// Tiles whose columns are made ahead, one by each warp, between two of the block's barriers.
inline constexpr int kTogetherSet = kReaderWarps;
static_assert(kReaderWarps * kWarpChannels == kChannels && kReaderSlots == 2);

template <int kSources>
struct alignas(16) TogetherShared {
  using Rows = ReaderRows<bf16>;
  struct alignas(16) Warp {
    struct alignas(16) Slot {
      Rows z, dout, gate;
      struct alignas(16) Source {
        Rows u, dt;
      } source[kSources];
    } slot[kReaderSlots];
    ReaderDrive drive[kSources];
    Weights q;
  } warp[kReaderWarps];
  /// Of a tile. Raw B is fetched to where its first piece will be.
  struct alignas(16) Columns {
    ReaderPlane B[kSources][2];
    float C[kTile][kStates];

    __device__ float* raw_B(int k, const ReaderLane& lane) {
      return reinterpret_cast<float*>(B[k][0].at) + lane.pair * kStates + 4 * lane.quad;
    }
  } columns[2][kTogetherSet];
  float4 sums[2][kTogetherSet][kReaderWarps][32];  ///< Each warp's part of a tile's C̄, as TogetherSums has it.
  float bias[kSources][kChannels];
};

/// What is elementwise before a tile's steps, found beside the last steps of the tile before and stored after them.
template <int kSources>
struct TogetherInputs {
  float delta[kSources][4], input[kSources][4];
  ReaderFactors factors;

  __device__ void find(const typename TogetherShared<kSources>::Warp::Slot& slot, const TogetherShared<kSources>& shared,
                       const ReaderLane& lane) {
    factors.find(slot.z, slot.dout, slot.gate, lane);
#pragma unroll
    for (int k = 0; k < kSources; ++k) {
      find_drive(slot.source[k].u, slot.source[k].dt, shared.bias[k] + lane.warp * kWarpChannels, lane, delta[k], input[k]);
    }
  }
  __device__ void store(typename TogetherShared<kSources>::Warp& to, const ReaderLane& lane) const {
    to.q.store(lane, {{factors.q[0], factors.q[1]}, {factors.q[2], factors.q[3]}});
#pragma unroll
    for (int k = 0; k < kSources; ++k) store_drive(to.drive[k], lane, delta[k], input[k]);
  }
};

/// A warp's copies, tile by tile. Each lane has its own pointers, which move along: found anew they would be a twentieth of
/// what a tile issues.
template <int kSources>
class TogetherFetch {
 public:
  __device__ TogetherFetch(const ReaderParams<bf16>& p, TogetherShared<kSources>& shared, int tile, int end,
                           const ReaderLane& lane)
      : p_(p), shared_(shared), end_(end), lane_(lane) {
    const Extents& x = p.x;
    const int t = lane.lane % 16 / 2, c = lane.lane % 2 * 8, token = tile * kTile + t;
    const int channel = blockIdx.x * kChannels + lane.warp * kWarpChannels + c;
    const std::int64_t row = x.sequence(blockIdx.y) + static_cast<std::int64_t>(token) * x.channels + channel;
    const std::int64_t z_row = x.sequence(blockIdx.y, x.z_stride) + static_cast<std::int64_t>(token) * x.z_stride + channel;
    outer_ = second() ? p.dout + row : p.z + z_row, gate_ = p.gate + row;
#pragma unroll
    for (int k = 0; k < kSources; ++k) {
      const Recurrence<bf16>& source = p.part[k].source;
      inner_[k] = (second() ? source.dt : source.u) + row;
    }
    outer_step_ = kTile * (second() ? x.channels : x.z_stride);
    Slot& slot = shared.warp[lane.warp].slot[0];
    to_ = shared_address(slot.z.row(t) + c) + (second() ? sizeof slot.z : 0);
    keep(outer_step_), keep(to_);
  }

  /// A tile's inputs to a slot, and on to the next tile.
  __device__ void rows(bool exists, unsigned slot) {
    if (exists) {
      const unsigned to = to_ + slot * static_cast<unsigned>(sizeof(Slot));
      copy(to, outer_);
      if (!second()) copy(to + 2 * kRows, gate_);
#pragma unroll
      for (int k = 0; k < kSources; ++k) copy(to + (3 + 2 * k) * kRows, inner_[k]);
    }
    const int step = kTile * p_.x.channels;
    outer_ += outer_step_, gate_ += step;
#pragma unroll
    for (int k = 0; k < kSources; ++k) inner_[k] += step;
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
  /// Raw columns of the warp's tile of the set that begins with `tile`; they come with the rows that are fetched next.
  __device__ void columns(int tile, unsigned set) {
    tile += lane_.warp;
    if (tile >= end_) return;
    const Extents& x = p_.x;
    typename TogetherShared<kSources>::Columns& to = shared_.columns[set][lane_.warp];
    const std::int64_t column =
        x.column_rows(blockIdx.y) + static_cast<std::int64_t>(tile * kTile + lane_.pair) * x.columns + 4 * lane_.quad;
#pragma unroll
    for (int k = 0; k < kSources; ++k) copy(shared_address(to.raw_B(k, lane_)), p_.part[k].source.dbc + column);
    copy(shared_address(&to.C[lane_.pair][4 * lane_.quad]), p_.dbc + (x.columns - kStates) + column);
  }
  /// Cuts them; they have come.
  __device__ void cut(int tile, unsigned set) const {
    if (tile + lane_.warp >= end_) return;
    typename TogetherShared<kSources>::Columns& to = shared_.columns[set][lane_.warp];
    float raw[kSources][4];
#pragma unroll
    for (int k = 0; k < kSources; ++k) load4(to.raw_B(k, lane_), raw[k]);
    __syncwarp();
#pragma unroll
    for (int k = 0; k < kSources; ++k) cut_columns(to.B[k], raw[k], lane_);
  }

 private:
  using Slot = typename TogetherShared<kSources>::Warp::Slot;
  static constexpr unsigned kRows = sizeof(ReaderRows<bf16>);
  static_assert(sizeof(typename Slot::Source) == 2 * kRows && kRows % 16 == 0);

  static __device__ void copy(unsigned to, const void* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  }

  /// Lanes that copy the second of two activations.
  __device__ bool second() const {
    return lane_.lane >= 16;
  }

  const ReaderParams<bf16>& p_;
  TogetherShared<kSources>& shared_;
  int end_;
  const ReaderLane& lane_;
  const bf16 *outer_, *gate_, *inner_[kSources];  ///< z or dout; gate; u or dt.
  int outer_step_;
  unsigned to_;
};

}  // namespace dm::cuda::scan::backward
