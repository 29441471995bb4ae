// The adjoint of the selective scan over segments of time, from zero: what enters each of them from behind.
#pragma once

#include "kernels/cuda/scan_adjoint_fetch.cuh"

namespace dm::cuda::scan::backward {

/// The first pass over segments, in shorter pieces that fill a GPU: the adjoint recurrence from zero at the end of each to
/// its first token, but for those of the first segment. Two lanes a channel, eight states each, tiles of eight steps: one is
/// walked while the next one's Δ and ȳ are made and the one after it is fetched. λ needs no states, so this is half of a
/// forward. What bounds it is the unit of exponentials, so some of a lane's eight go without it.
///
/// kAligned: rows and columns begin at multiples of 16 bytes; kReaders: there may be some.
template <class T, bool kAligned, bool kReaders>
__global__ void __launch_bounds__(kThreads, 6) segment_kernel(const __grid_constant__ MainParams<T> p) {
  using Shared = SegmentShared<T>;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  Shared& s = *reinterpret_cast<Shared*>(shared_bytes);
  const Extents& x = p.x;
  const int b = blockIdx.y, piece = blockIdx.z + p.pieces.each, first_channel = blockIdx.x * kChannels;
  const int local = threadIdx.x / 2, channel = first_channel + local, first_state = threadIdx.x % 2 * kVector;
  const int row = threadIdx.x / 16, quad = threadIdx.x % 16 * 4;

  float rate[kVector], carry[kVector] = {}, sum = 0.0f, most = 1e30f;  // most: that decays by 2^-125 at least
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    rate[j] = rate_of(p.own, x, channel, p.slice * kStates + first_state + j);
    if (j < Shared::kByProducts) most = fminf(most, 125.0f / fmaxf(-rate[j], 1e-30f));
  }
  if (threadIdx.x < kChannels) {
    const int c = first_channel + static_cast<int>(threadIdx.x);
    s.bias[threadIdx.x] = c < x.channels ? p.own.dt_bias[c] : 0.0f;
  }
  const std::conditional_t<kAligned, SegmentCopies<T>, SlowSegmentCopies<T>> copies{p, s};
  const auto fetch = [&](int tile, int slot) {
    copies.run(tile, slot);
    if constexpr (kReaders) {
      for (int k = 0; k < p.readers; ++k) {
        typename Shared::ReaderStage& reader = s.reader(k, slot);
        copy_rows<kTile>(reader.q[0], p.reader[k].q, x.channels, x, b, tile * kTile, first_channel);
        copy_columns<kTile>(reader.C[0], p.reader[k].dbc + x.column_rows(b), x, tile * kTile,
                            x.columns - x.states + p.slice * kStates, x.states - p.slice * kStates);
      }
    }
  };
  const auto prepare = [&](int tile, int slot) {
    const typename Shared::Stage& stage = s.stage[slot];
    const bool inside = tile * kTile + row < x.tokens;
    float dt[4], z[2][2], dout[4], bias[4];
    load4(&stage.dt[row][quad], dt);
    load2(&stage.z[row][quad], z[0]);
    load2(&stage.z[row][quad + 2], z[1]);
    load4(&stage.dout[row][quad], dout);
    load4(&s.bias[quad], bias);
    silu_pair(z[0]);
    silu_pair(z[1]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      dt[i] = inside ? backward_softplus<T>(dt[i] + bias[i]) : 0.0f;
      dout[i] *= z[i / 2][i % 2];
    }
    float4* drive = reinterpret_cast<float4*>(&s.drive[tile & 1][row][quad]);
    drive[0] = make_float4(dt[0], dout[0], dt[1], dout[1]);
    drive[1] = make_float4(dt[2], dout[2], dt[3], dout[3]);
  };

  const int tiles = (x.tokens + kTile - 1) / kTile, begin = piece * p.tiles_a_piece;
  const int end = min(begin + p.tiles_a_piece, tiles);
  int slot = 0;  // of `tile`
  const auto before = [](int slot, int tiles) { return (slot + tiles) % Shared::kStages; };
  fetch(end - 1, before(slot, 1));
  for (int tile = end; tile >= begin; --tile) {
    wait_for_copies();
    __syncthreads();
    if (tile - 2 >= begin) fetch(tile - 2, before(slot, 2));
    if (tile - 1 >= begin) prepare(tile - 1, before(slot, 1));
    if (tile < end) {
#pragma unroll
      for (int t = kTile - 1; t >= 0; --t) {
        const float2 drive = s.drive[tile & 1][t][local];
        float C[kVector];
        load8(s.stage[slot].C[t] + first_state, C);
        sum += drive.x;
#pragma unroll
        for (int j = 0; j < kVector; ++j) carry[j] += drive.y * C[j];
#pragma unroll 1
        for (int k = 0; k < (kReaders ? p.readers : 0); ++k) {
          const typename Shared::ReaderStage& reader = s.reader(k, slot);
          const float q = to_float(reader.q[t][local]);
          load8(reader.C[t] + first_state, C);
#pragma unroll
          for (int j = 0; j < kVector; ++j) carry[j] += q * C[j];
        }
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          carry[j] *=
              j < Shared::kByProducts ? exp2_by_products(fminf(drive.x, most), rate[j]) : exp2_fast(drive.x * rate[j]);
        }
      }
    }
    slot = before(slot, 1);
  }
  if (channel >= x.channels) return;
  store8(p.pieces.states + p.pieces.state_row(x, b, piece, p.slice, channel) + first_state, carry);
  if (first_state == 0) p.pieces.sums[p.pieces.sum_at(x, b, piece, channel)] = sum;
}

/// Finds what enters each segment.
template <class T>
void run_segments(const NativeStream& native, MainParams<T> p) {
  const dim3 grid(static_cast<unsigned>(blocks_of(p.x.channels)), static_cast<unsigned>(p.x.batch),
                  static_cast<unsigned>(p.pieces.count - p.pieces.each));
  const auto kernel = !p.x.vector || !p.x.vector_columns ? segment_kernel<T, false, true>
                      : p.readers > 0                    ? segment_kernel<T, true, true>
                                                         : segment_kernel<T, true, false>;
  for (p.slice = 0; p.slice < p.x.slices; ++p.slice) {
    launch(kernel, grid, kThreads, SegmentShared<T>::bytes(p.readers), native, p);
  }
  run_enter_segments(native, p.x, p.own, p.pieces, p.segments, nullptr, true);
}

}  // namespace dm::cuda::scan::backward
