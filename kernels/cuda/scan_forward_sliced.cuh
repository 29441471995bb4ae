// The selective scan forward for any number of sources and of states: parts (a recurrence, 16 of its states) take turns in
// each tile, their states waiting in shared memory. The last part is the layer's own first slice.
#pragma once

#include "kernels/cuda/scan_forward_fetch.cuh"
#include "kernels/cuda/scan_forward_params.cuh"

namespace dm::cuda::scan::forward {

template <class T>
struct alignas(16) SlicedShared {
  static constexpr bool kExact = std::is_same_v<T, float>;
  Rows<T> u, dt, z, gate;
  float B[kTile][kStates], C[kTile][kStates];
  Drive<true> drive[kWarps];
  InputColumns<true> input;
  ReadoutColumns<kExact> readout;
  using States = float[2][4][kThreads];
  /// Those of each part follow.
  __device__ States& states(int part) { return reinterpret_cast<States*>(this + 1)[part]; }
  static std::size_t bytes(int parts) { return sizeof(SlicedShared) + sizeof(States) * parts; }

  __device__ void store_states(int part, const float (&h)[2][4]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) states(part)[i / 4][i % 4][threadIdx.x] = h[i / 4][i % 4];
  }
  __device__ void load_states(int part, float (&h)[2][4]) {
#pragma unroll
    for (int i = 0; i < 8; ++i) h[i / 4][i % 4] = states(part)[i / 4][i % 4][threadIdx.x];
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2) forward_sliced_kernel(const __grid_constant__ ForwardParams<T> p) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  SlicedShared<T>& s = *reinterpret_cast<SlicedShared<T>*>(shared_bytes);
  const Extents& x = p.x;
  const MakerLane<T> lane;
  const int b = blockIdx.y, first_channel = blockIdx.x * kChannels, channel = first_channel + lane.first_channel;
  const int parts = p.recurrences * x.slices;

  float skip[2];
  load_channels(p.skip, x, channel, skip);
  for (int part = 0; part < parts; ++part) {
    float h[2][4];
    load_start(p, part / x.slices, channel, part % x.slices * kStates + lane.first_state, h);
    s.store_states(part, h);
  }

  const auto fetch = [&](int token, int part) {
    const int slice = part % x.slices, count = x.states - slice * kStates, r = part / x.slices;
    const Source<T> at(x, b, token / kTile, first_channel, x.channels);
    const int column = x.columns - 2 * x.states + slice * kStates;
    fetch_rows<Fit::any>(s.u, p.recurrence[r].u, x, at);
    fetch_rows<Fit::any>(s.dt, p.recurrence[r].dt, x, at);
    copy_columns<kTile>(s.B[0], p.recurrence[r].dbc + x.column_rows(b), x, token, column, count);
    copy_columns<kTile>(s.C[0], p.recurrence[0].dbc + x.column_rows(b), x, token, column + x.states, count);
    if (part == parts - 1) {
      fetch_rows<Fit::any>(s.z, p.z, x, Source<T>(x, b, token / kTile, first_channel, x.z_stride));
      if (p.gate) fetch_rows<Fit::any>(s.gate, p.gate, x, at);
    }
  };

  for (int token = 0; token < x.tokens; token += kTile) {
    float own[kTile / kGroup][2][2] = {}, sources[kTile / kGroup][2][2] = {};
    for (int part = parts - 1; part >= 0; --part) {
      const int r = part / x.slices, slice = part % x.slices;
      const Recurrence<T>& recurrence = p.recurrence[r];
      __syncthreads();  // nobody reads the part before any more
      fetch(token, part);
      wait_for_copies();
      __syncthreads();
      s.input.fill(s.B);
      s.readout.fill(s.C, threadIdx.x, kThreads);
      float bias[2], rate[2][4], h[2][4];
      load_channels(recurrence.dt_bias, x, channel, bias);
      Values<true> values;
      prepare<true, Fit::any>(values, 1.0f, s.u, s.dt, bias, lane, x.tokens - token);
      s.drive[lane.warp].store(values, lane);
      load_rates(recurrence, x, channel, slice * kStates + lane.first_state, rate);
      s.load_states(part, h);
      __syncthreads();
#pragma unroll
      for (int group = 0; group < kTile / kGroup; ++group) {
        const int begin = group * kGroup;
        if (r == 0 && token + begin < x.tokens) {
          T* const states = saved_states(p, token + begin, slice, channel, lane);
          save_states(states != nullptr, states && channel + 1 < x.channels, states, h);
        }
        Readout<SlicedShared<T>::kExact> readout;
        readout.load(s.readout, begin, lane);
        float y[2][2] = {};
        Walk<2, true> walk(&s, s.drive[lane.warp], s.input, lane, p.no_bits);
#pragma unroll 1
        for (int half = 0; half < 2; ++half) {
          const int quad = 2 * group + half;
          walk.begin(0, quad, rate);
          walk.template advance<false>(0, 0, quad, 0, 0, rate, h, [&](int i, const float(&seen)[2][4]) {
            readout.store(half, i, seen, lane, false, y);
          });
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float sum = y[i / 2][i % 2];
          own[group][i / 2][i % 2] += r == 0 ? sum : 0.0f, sources[group][i / 2][i % 2] += r == 0 ? 0.0f : sum;
        }
      }
      s.store_states(part, h);
    }
#pragma unroll
    for (int group = 0; group < kTile / kGroup; ++group) {
      const int begin = group * kGroup;
      const std::int64_t row = token + begin + 2 * lane.quad;
      T* const out = p.out + x.sequence(b) + row * x.channels + channel;
      const auto store = [&](const auto& output) {
        output.template store<Fit::any>(out, x, begin, x.tokens - token, channel, lane, own[group], sources[group]);
      };
      if (p.gate) {
        store(Output<true>(s.u, s.z, &s.gate, skip, begin, lane));
      } else {
        store(Output<false>(s.u, s.z, &s.gate, skip, begin, lane));
      }
    }
  }
  for (int slice = 0; slice < x.slices; ++slice) {
    float h[2][4];
    s.load_states(slice, h);
    store_final(p, channel, slice * kStates + lane.first_state, h);
  }
}

}  // namespace dm::cuda::scan::forward
