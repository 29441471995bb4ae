// The reader's part of the scan's backward: what the sources' states give to q, dgate, C̄ and to the output.
//
// Every tile of eight tokens starts from saved states, so there is nothing to wait for: a warp takes a tile and 64 channels,
// sixteen of them at a time, one source after the other, and works alone, with the inputs of its next two steps on their way
// to its own shared memory. Lanes share channels and states as in scan_forward_tile.cuh, with the same two products on
// tensor cores, Δu ⊗ B and h · C. C̄'s sums over channels stay in registers over all 64; lanes add theirs up once a tile. A
// state-step costs three FP32 instructions, one ex2 (the bound), half a product and a float from shared memory.
//
// Writes q, dgate, the sources' part of C̄, and silu(gate) ⊙ r to du, where the main kernel reads it before it overwrites it.
#pragma once

#include <limits>

#include "kernels/cuda/scan_reader_tile.cuh"

namespace dm::cuda::scan::backward {

/// Left alone, the compiler computes what follows from the lane anew wherever it is used.
template <class Word>
__device__ inline void keep(Word& word) {
  asm volatile("" : "+r"(word));
}

/// A warp's copies, turn by turn, zeros outside; where a lane reads moves along instead of being computed again. kWhole: all
/// tiles and groups of channels are whole, rows of activations and columns of projections begin at multiples of 16 bytes.
template <class T, bool kWhole>
class ReaderFetch {
 public:
  __device__ ReaderFetch(const ReaderParams<T>& p, ReaderWarpShared<T>& s, ReaderTurn first, int end, const ReaderLane& lane)
      : p_(p), s_(s), turn_(first), end_(end), warp_(lane.warp), lane_(lane.lane) {
    const Extents& x = p.x;
    const int t = lane_ % kCopies / kRow, c = lane_ % kRow * kEach, i = lane_ * kEach, channel = blockIdx.x * kChannels;
    const int tile = turn_.tile + warp_;
    row_ = x.sequence(blockIdx.y) + static_cast<std::int64_t>(tile * kTile + t) * x.channels + channel + c;
    state_ = x.saved_states(blockIdx.y, tile, 0) + static_cast<std::int64_t>(channel) * kStates + i;
    row_to_ = address(s.slot[0].u.row(t) + c) + (second() ? sizeof s.slot[0].u : 0);
    state_to_ = address(&s.slot[0].states[i / kStates % 2][i / kStates / 2][i % kStates]);
    keep(row_to_), keep(state_to_);
  }

  /// The turn's inputs to a slot, and on to the next turn.
  __device__ void run(int slot) {
    if (turn_.tile < end_) {
      const ReaderPart<T>& part = p_.part[turn_.part];
      if constexpr (kWhole) {
        whole(part.source, slot * static_cast<int>(sizeof(ReaderSlot<T>)));
      } else {
        any(part.source, s_.slot[slot]);
      }
      if (turn_.group == 0 || p_.parts > kKeptColumns) columns(part, s_.slot[slot]);
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    advance();
  }

 private:
  static constexpr int kEach = 16 / static_cast<int>(sizeof(T)), kRow = kWarpChannels / kEach, kCopies = kTile * kRow;
  using Slot = ReaderSlot<T>;

  static __device__ unsigned address(const void* shared) { return static_cast<unsigned>(__cvta_generic_to_shared(shared)); }
  static __device__ void copy(unsigned to, const T* from) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  }
  /// Lanes that copy the second of two activations, when a warp has enough for both.
  __device__ bool second() const { return lane_ >= kCopies; }

  __device__ void whole(const Recurrence<T>& source, unsigned slot) const {
    const Extents& x = p_.x;
    const unsigned to = row_to_ + slot;
    constexpr unsigned kRows = sizeof(typename Slot::Rows);
    if constexpr (kCopies == 16) {
      copy(to, (second() ? source.dt : source.u) + row_);
    } else {
      copy(to, source.u + row_);
      copy(to + kRows, source.dt + row_);
    }
#pragma unroll
    for (int i = 0; i < kWarpChannels * kStates; i += 32 * kEach) {
      copy(state_to_ + slot + i / 2 * static_cast<int>(sizeof(T)), source.states + state_ + i);
    }
    if (turn_.part > 0) return;
    const int t = lane_ % kCopies / kRow, c = lane_ % kRow * kEach;
    const T* const z = p_.z + x.sequence(blockIdx.y, x.z_stride) +
                       static_cast<std::int64_t>((turn_.tile + warp_) * kTile + t) * x.z_stride + blockIdx.x * kChannels +
                       turn_.group * kWarpChannels + c;
    if constexpr (kCopies == 16) {
      copy(to + 2 * kRows, second() ? p_.dout + row_ : z);
      if (!second()) copy(to + 4 * kRows, p_.gate + row_);
    } else {
      copy(to + 2 * kRows, z);
      copy(to + 3 * kRows, p_.dout + row_);
      copy(to + 4 * kRows, p_.gate + row_);
    }
  }
  __device__ void any(const Recurrence<T>& source, Slot& slot) const {
    const Extents& x = p_.x;
    const int first_token = (turn_.tile + warp_) * kTile, channel = blockIdx.x * kChannels + turn_.group * kWarpChannels;
    const T* const states =
        source.states + x.saved_states(blockIdx.y, turn_.tile + warp_, 0) + static_cast<std::int64_t>(channel) * kStates;
    for (int i = lane_; i < kWarpChannels * kStates; i += 32) {
      const int c = i / kStates;
      const bool inside = first_token < x.tokens && channel + c < x.channels;
      slot.states[c % 2][c / 2][i % kStates] = inside ? states[i] : from_float<T>(0.0f);
    }
    const auto rows = [&](typename Slot::Rows& to, const T* from, int stride) {
      from += x.sequence(blockIdx.y, stride) + channel;
      for (int i = lane_; i < kTile * kWarpChannels; i += 32) {
        const int t = i / kWarpChannels, c = i % kWarpChannels;
        const bool inside = first_token + t < x.tokens && channel + c < x.channels;
        to.row(t)[c] = inside ? from[static_cast<std::int64_t>(first_token + t) * stride + c] : from_float<T>(0.0f);
      }
    };
    rows(slot.u, source.u, x.channels);
    rows(slot.dt, source.dt, x.channels);
    if (turn_.part > 0) return;
    rows(slot.z, p_.z, x.z_stride);
    rows(slot.dout, p_.dout, x.channels);
    rows(slot.gate, p_.gate, x.channels);
  }
  __device__ void columns(const ReaderPart<T>& part, Slot& to) const {
    const Extents& x = p_.x;
    const int token = (turn_.tile + warp_) * kTile, count = x.states - part.slice * kStates;
    const float* from = part.source.dbc + x.column_rows(blockIdx.y) + static_cast<std::int64_t>(token) * x.columns;
    constexpr int kWide = kWhole ? 4 : 1, kWideRow = kStates / kWide;
#pragma unroll
    for (int first = 0; first < kTile * kWideRow; first += 32) {
      const int i = first + lane_, t = i / kWideRow, n = i % kWideRow * kWide;
      if constexpr (kWhole) {
        copy16_async(&to.B[t][n], from + t * x.columns + n, n < count);
      } else {
        copy4_async(&to.B[t][n], from + t * x.columns + n, token + t < x.tokens && n < count);
      }
    }
  }
  __device__ void advance() {
    const Extents& x = p_.x;
    if (++turn_.part < p_.parts) return;
    turn_.part = 0;
    row_ += kWarpChannels, state_ += kWarpChannels * kStates;
    if (++turn_.group < turn_.groups) return;
    const int back = turn_.groups * kWarpChannels;
    turn_.group = 0;
    turn_.tile += kReaderWarps;
    row_ += static_cast<std::int64_t>(kReaderWarps * kTile) * x.channels - back;
    state_ += (static_cast<std::int64_t>(kReaderWarps) * x.slices * x.channels - back) * kStates;
  }

  const ReaderParams<T>& p_;
  ReaderWarpShared<T>& s_;
  ReaderTurn turn_;
  int end_, warp_, lane_;
  std::int64_t row_, state_;
  unsigned row_to_, state_to_;
};

/// A lane's elements, rows from that of its first token and this channel on; those outside stay unwritten.
template <bool kWhole, class T>
__device__ void store_elements(T* rows, const Extents& x, int token, int channel, const float (&values)[4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    T* const row = rows + i * x.channels;
    if constexpr (kWhole) {
      store2(row, {values[2 * i], values[2 * i + 1]});
    } else if (token + i < x.tokens && channel < x.channels) {
      row[0] = from_float<T>(values[2 * i]);
      if (channel + 1 < x.channels) row[1] = from_float<T>(values[2 * i + 1]);
    }
  }
}

template <class T, bool kWhole>
__global__ void __launch_bounds__(kReaderThreads, kReaderBlocks<T>)
    reader_kernel(const __grid_constant__ ReaderParams<T> p) {
  using Shared = ReaderShared<T>;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  Shared& shared = *reinterpret_cast<Shared*>(shared_bytes);
  const Extents& x = p.x;
  const int b = blockIdx.y, first_channel = blockIdx.x * kChannels;
  const ReaderLane lane;
  ReaderWarpShared<T>& s = shared.warp[lane.warp];

  for (int i = 0; i < p.parts; ++i) {
    typename Shared::Part& part = shared.part(i);
    for (int k = threadIdx.x; k < kChannels * kStates; k += kReaderThreads) {
      const int c = k / kStates, n = k % kStates;
      part.rate[c % 2][c / 2][n] = rate_of(p.part[i].source, x, first_channel + c, p.part[i].slice * kStates + n);
    }
    for (int c = threadIdx.x; c < kChannels; c += kReaderThreads) {
      part.bias[c] = first_channel + c < x.channels ? p.part[i].source.dt_bias[first_channel + c] : 0.0f;
    }
  }
  __syncthreads();

  const int groups = min(kChannels / kWarpChannels, (x.channels - first_channel + kWarpChannels - 1) / kWarpChannels);
  const int end = min((static_cast<int>(blockIdx.z) + 1) * p.tiles_a_block, (x.tokens + kTile - 1) / kTile);
  const bool columns_stay = p.parts <= kKeptColumns;
  ReaderTurn now{static_cast<int>(blockIdx.z) * p.tiles_a_block, groups};
  ReaderFetch<T, kWhole> fetch(p, s, now, end, lane);
  ReaderSums total;
  ReaderColumns<T> readout;
  float r[4] = {};
  for (int turn = -kReaderSlots; now.tile < end; ++turn) {
    const int slot_index = static_cast<unsigned>(turn + kReaderSlots) % kReaderSlots;
    ReaderSlot<T>& slot = s.slot[slot_index];
    const ReaderPart<T>& part = p.part[now.part];
    const int tile = now.tile + lane.warp, token = tile * kTile + 2 * lane.quad, local = now.group * kWarpChannels;
    const int channel = first_channel + local + 2 * lane.pair;
    const auto at = [&] { return x.sequence(b) + static_cast<std::int64_t>(token) * x.channels + channel; };
    ReaderPlane(&columns)[2] = s.B[columns_stay ? now.part : 0];
    float h[2][4], rate[2][4];
    if (turn >= 0) {
      asm volatile("cp.async.wait_group %0;" ::"n"(kReaderSlots - 1) : "memory");
      __syncwarp();
      if (part.first && (now.group == 0 || x.slices > 1)) readout.template load<kWhole>(p, b, tile, part.slice, lane);
      if (now.part == 0) {
        float q[4];
        prepare_gates(s, slot, lane, q);
        store_elements<kWhole>(p.q + at(), x, token, channel, q);
      }
      typename Shared::Part& fixed = shared.part(now.part);
      prepare_drive(s, slot, fixed.bias + local, lane);
      if (now.group == 0 || !columns_stay) prepare_columns(columns, slot, lane);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        load4(&slot.states[c][lane.pair][4 * lane.quad], h[c]);
        load4(&fixed.rate[c][local / 2 + lane.pair][4 * lane.quad], rate[c]);
      }
      __syncwarp();
    }
    fetch.run(slot_index);
    if (turn < 0) continue;
    walk_tile(s, columns, rate, h, readout, lane, r, total, p.no_bits);

    if (part.last && (now.group == groups - 1 || x.slices > 1)) {
      float sum[4];
      total.reduce(lane, sum);
      total = {};
      const int t = tile * kTile + lane.pair;
      const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * x.batch + b) * x.tokens + t;
      float* to = p.source_columns + (row * x.slices + part.slice) * kStates + 4 * lane.quad;
      if (kWhole || t < x.tokens) {
        if (x.slices > 1 && now.group > 0) {
#pragma unroll
          for (int n = 0; n < 4; ++n) sum[n] += to[n];
        }
        store4(to, sum);
      }
    }
    if (now.part == p.parts - 1) {
      float value[4], factor[4];
      load4(s.gate_value[lane.lane], value);
      load4(s.dgate_factor[lane.lane], factor);
#pragma unroll
      for (int k = 0; k < 4; ++k) value[k] *= r[k], factor[k] *= r[k], r[k] = 0.0f;
      store_elements<kWhole>(p.dgate + at(), x, token, channel, factor);
      store_elements<kWhole>(p.gated_readout + at(), x, token, channel, value);
    }
    now.advance(p.parts);
  }
}

template <class T>
void run_reader(const NativeStream& native, const ScanBackwardArgs& args, const Extents& x, float* source_columns) {
  ReaderParams<T> p{};
  p.x = x;
  const int sources = static_cast<int>(args.sources.size());
  p.parts = x.slices * sources;
  require(p.parts <= kMaxParts && ReaderShared<T>::bytes(p.parts) <= kMaxShared,
          "the selective scan's backward on a GPU has no shared memory for so many states of sources");
  for (int i = 0; i < p.parts; ++i) {
    const int slice = i / sources, s = i % sources;
    p.part[i] = {view<T>(args.sources[static_cast<std::size_t>(s)]), slice, s == 0, s == sources - 1};
    p.part[i].source.states += static_cast<std::int64_t>(slice) * x.channels * kStates;
    p.part[i].source.dbc += x.columns - 2 * x.states + slice * kStates;
  }
  p.dbc = args.own.dbc.as<float>();
  p.gate = pointer<const T>(args.gate), p.z = pointer<const T>(args.z), p.dout = pointer<const T>(args.dout);
  p.q = pointer<T>(args.q), p.dgate = pointer<T>(args.dgate), p.gated_readout = pointer<T>(args.du);
  p.source_columns = source_columns;
  const bool whole =
      x.vector && x.vector_columns && x.channels % kWarpChannels == 0 && x.tokens % (kReaderWarps * kTile) == 0;
  // Pieces of time: as many as give the shortest turn of the last block's warps, with one tile for their start.
  const std::int64_t tiles = pieces(x.tokens, kTile), blocks = blocks_of(x.channels) * x.batch;
  std::int64_t shortest = std::numeric_limits<std::int64_t>::max();
  for (std::int64_t count = 1; count <= std::min<std::int64_t>(pieces(tiles, kReaderWarps), 64); ++count) {
    const std::int64_t each = pieces(tiles, count * kReaderWarps);
    const std::int64_t waves = pieces(blocks * count, native.multiprocessors * kReaderBlocks<T>);
    if (waves * (each + 1) >= shortest) continue;
    shortest = waves * (each + 1);
    p.tiles_a_block = static_cast<int>(each * kReaderWarps);
  }
  const dim3 grid(static_cast<unsigned>(blocks_of(x.channels)), static_cast<unsigned>(x.batch),
                  static_cast<unsigned>(pieces(tiles, p.tiles_a_block)));
  const auto kernel = whole ? reader_kernel<T, true> : reader_kernel<T, false>;
  const std::size_t shared = ReaderShared<T>::bytes(p.parts);
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)));
  kernel<<<grid, kReaderThreads, shared, native.stream>>>(p);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace dm::cuda::scan::backward
