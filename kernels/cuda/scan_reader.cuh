// The reader's part of the scan's backward: what the sources' states give to q, dgate, C̄ and to the output.
//
// Every tile of eight tokens starts from saved states, so there is nothing to wait for: a warp takes a tile and 64 channels,
// sixteen of them at a time, one source after the other, and works alone, with the inputs of its next two steps on their way
// to its own shared memory. Lanes share channels and states as in scan_forward_tile.cuh, with the same two products on
// tensor cores, Δu ⊗ B and h · C. C̄'s sums over channels stay in registers over all 64; lanes add theirs up once a tile. A
// state-step costs three FP32 instructions, one ex2 (the bound), half a product and a float from shared memory.
//
// In bfloat16, where rows, channels and states are whole and sources are one or two, scan_reader_together.cuh takes over.
//
// Writes q, dgate, the sources' part of C̄, and silu(gate) ⊙ r to du, where the main kernel reads it before it overwrites it.
#pragma once

#include <limits>

#include "kernels/cuda/scan_reader_together.cuh"

namespace dm::cuda::scan::backward {

/// A lane's elements, rows from that of its first token and this channel on; those outside stay unwritten.
template <bool kWhole, class T>
__device__ void store_elements(T* rows, const Extents& x, int token, int channel, const float (&values)[4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool inside = kWhole || (token + i < x.tokens && channel < x.channels);
    store_pair<kWhole>(rows + i * x.channels, {inside, inside && channel + 1 < x.channels},
                       {values[2 * i], values[2 * i + 1]});
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
        ReaderFactors factors;
        factors.find(slot.z, slot.dout, slot.gate, lane);
        factors.store(s.gates, lane);
        store_elements<kWhole>(p.q + at(), x, token, channel, factors.q);
      }
      typename Shared::Part& fixed = shared.part(now.part);
      float delta[4], input[4];
      find_drive(slot.u, slot.dt, fixed.bias + local, lane, delta, input);
      store_drive(s.drive, lane, delta, input);
      if (now.group == 0 || !columns_stay) {
        float B[4];
        load4(&slot.B[lane.pair][4 * lane.quad], B);
        cut_columns(columns, B, lane);
      }
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
      load4(s.gates.value[lane.lane], value);
      load4(s.gates.factor[lane.lane], factor);
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
    const std::int64_t waves = pieces(blocks * count, kMultiprocessors * kReaderBlocks<T>);
    if (waves * (each + 1) >= shortest) continue;
    shortest = waves * (each + 1);
    p.tiles_a_block = static_cast<int>(each * kReaderWarps);
  }
  const dim3 grid(static_cast<unsigned>(blocks_of(x.channels)), static_cast<unsigned>(x.batch),
                  static_cast<unsigned>(pieces(tiles, p.tiles_a_block)));
  if constexpr (std::is_same_v<T, bf16>) {
    if (has_together(p, whole)) return p.parts == 1 ? run_together<1>(native, grid, p) : run_together<2>(native, grid, p);
  }
  const auto kernel = whole ? reader_kernel<T, true> : reader_kernel<T, false>;
  launch(kernel, grid, kReaderThreads, ReaderShared<T>::bytes(p.parts), native, p);
}

}  // namespace dm::cuda::scan::backward
