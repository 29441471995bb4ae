// The reader of states where all is aligned: one or two sources walked together through pieces of time.
//
// A block takes 64 channels through a piece of time, sixteen to a warp, from the states that were saved at its begin. What
// sources share is done once: q, dgate, h · C and C̄ are of the sources' sum of states, which costs an addition for each of
// theirs but one, and two recurrences fill each other's waits for exponentials. Warps work alone but for the columns: each
// cuts B of one of the next four tiles, and sums one of the last four tiles' C̄ over the warps, between two barriers of the
// block. h · C and C̄ multiply factors of 8 bits and add in float32, as the main kernel's do (scan_backward_tile.cuh).
// A tile of a warp and two sources issues about 1010 instructions, 156 of them for the unit of exponentials.
#pragma once

#include "kernels/cuda/scan_reader_together_fetch.cuh"

namespace dm::cuda::scan::backward {

/// Sums over a warp's channels of q h: [2·j + i] is of state 4·(pair / 2) + 2·j + pair % 2 and token 2·quad + i.
struct TogetherSums {
  unsigned low, high;
  float sum[4] = {};

  __device__ void load(const Weights& q, const ReaderLane& lane) {
    const uint2 words = *reinterpret_cast<const uint2*>(&q.at[lane.pair * Weights::kStride + 2 * lane.quad]);
    low = __byte_perm(words.x, words.y, 0x5410), high = __byte_perm(words.x, words.y, 0x7632);
  }
  __device__ void add(const Packed<bf16>& h, const ReaderLane& lane, int two, int i) {
    const unsigned states[4] = {transposed(h.at[0]), transposed(h.at[2]), transposed(h.at[1]), transposed(h.at[3])};
    float sums[4];
    product_k16(sums, states, low, high);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      if (lane.quad == two) sum[2 * j + i] += sums[2 * j + i];
    }
  }
  __device__ void store(float* row, const ReaderLane& lane) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) row[k % 2 * kStates + 4 * (lane.pair / 2) + k / 2 * 2 + lane.pair % 2] = sum[k];
  }
};

/// The sources' states through a tile, all of them a token at a time: what they give to r of this lane's elements and to C̄.
/// [j][2·c + i] of h is state 4·quad + 2·j + i here, as the columns of ReaderPlane have it.
/// Exponentials are asked for one token ahead and not before, as in scan_forward_walk.cuh. `beside` runs in the last two
/// tokens' steps, which have little left to ask for.
template <int kSources, class Besides>
__device__ void walk_together(typename TogetherShared<kSources>::Warp& s,
                              typename TogetherShared<kSources>::Columns& columns, const States (&rate)[kSources],
                              States (&h)[kSources], const StateSums<bf16>& readout, const ReaderLane& lane, Elements& r,
                              TogetherSums& total, std::uint32_t no_bits, const Besides& beside) {
  float delta[kSources][4];
  States decay[kSources];
  const auto load_delta = [&](int two) {
#pragma unroll
    for (int k = 0; k < kSources; ++k) load4(s.drive[k].delta.row(two, lane.pair), delta[k]);
  };
  const auto find = [&](int t, int k, float zero) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int n = 0; n < 4; ++n) decay[k][j][n] = exp2_fast(fmaf(delta[k][t % 2 * 2 + n / 2], rate[k][j][n], zero));
    }
  };
  load_delta(0);
#pragma unroll
  for (int k = 0; k < kSources; ++k) find(0, k, 0.0f);
  total.load(s.q, lane);
#pragma unroll
  for (int two = 0; two < kTile / 2; ++two) {
    float input[kSources][4], B[kSources][4];
#pragma unroll
    for (int k = 0; k < kSources; ++k) {
      load4(s.drive[k].input[lane.quad / 2].row(two, lane.pair), input[k]);
      load4(columns.B[k][lane.quad % 2].row(two, lane.pair), B[k]);
    }
    if (two + 1 == kTile / 2) beside();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int next = 2 * two + i + 1;
      States sum;
      if (next % 2 == 0 && next < kTile) load_delta(next / 2);
#pragma unroll
      for (int k = 0; k < kSources; ++k) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float added[4];
          product_k4(added, input[k][2 * i], input[k][2 * i + 1], B[k][2 * i + j]);
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            h[k][j][n] = decay[k][j][n] * h[k][j][n] + added[n];
            sum[j][n] = k == 0 ? h[k][j][n] : sum[j][n] + h[k][j][n];
          }
        }
        if (next < kTile) find(next, k, __uint_as_float(__float_as_uint(h[k][0][0]) & no_bits));
      }
      const Packed<bf16> packed(sum);
      readout.add(sum, packed, lane, two, i, r);
      total.add(packed, lane, two, i);
    }
  }
}

/// C̄ of the warp's tile of a set that has been walked: the warps' parts in their order.
template <int kSources>
__device__ void store_columns(const ReaderParams<bf16>& p, const TogetherShared<kSources>& shared, int tile, unsigned set,
                              const ReaderLane& lane) {
  TogetherSums total;
#pragma unroll
  for (int w = 0; w < kReaderWarps; ++w) {
    const float4 part = shared.sums[set][lane.warp][w][lane.lane];
    total.sum[0] += part.x, total.sum[1] += part.y, total.sum[2] += part.z, total.sum[3] += part.w;
  }
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * p.x.batch + blockIdx.y) * p.x.tokens +
                           (tile + lane.warp) * kTile + 2 * lane.quad;
  total.store(p.source_columns + row * kStates, lane);
}

template <int kSources>
__global__ void __launch_bounds__(kReaderThreads, kReaderBlocks<bf16>)
    reader_together_kernel(const __grid_constant__ ReaderParams<bf16> p) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  TogetherShared<kSources>& shared = *reinterpret_cast<TogetherShared<kSources>*>(shared_bytes);
  const Extents& x = p.x;
  const ReaderLane lane;
  const int channel = blockIdx.x * kChannels + lane.warp * kWarpChannels + 2 * lane.pair;
  typename TogetherShared<kSources>::Warp& s = shared.warp[lane.warp];
  const int begin = static_cast<int>(blockIdx.z) * p.tiles_a_block;
  const int end = min(begin + p.tiles_a_block, x.tokens / kTile);
  TogetherFetch<kSources> fetch(p, shared, begin, end, lane);
  fetch.columns(begin, 0);
  fetch.rows(true, 0), fetch.rows(true, 1);
  States h[kSources], rate[kSources];
#pragma unroll
  for (int k = 0; k < kSources; ++k) {
    const Recurrence<bf16>& source = p.part[k].source;
    if (threadIdx.x < kChannels) shared.bias[k][threadIdx.x] = source.dt_bias[blockIdx.x * kChannels + threadIdx.x];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float state[4];
      load4(source.states + x.saved_states(blockIdx.y, begin, 0) + static_cast<std::int64_t>(channel + c) * kStates +
                lane.state(),
            state);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        h[k][n / 2][2 * c + n % 2] = state[n];
        rate[k][n / 2][2 * c + n % 2] = rate_of(source, x, channel + c, lane.state() + n);
      }
    }
  }
  asm volatile("cp.async.wait_group 1;" ::: "memory");
  __syncthreads();
  fetch.cut(begin, 0);

  // What is written, from the block's row on.
  std::int64_t at = x.sequence(blockIdx.y) + static_cast<std::int64_t>(begin * kTile) * x.channels + blockIdx.x * kChannels;
  int lane_at = 2 * lane.quad * x.channels + lane.warp * kWarpChannels + 2 * lane.pair;
  keep(lane_at);
  TogetherInputs<kSources> inputs;
  inputs.find(s.slot[0], shared, lane);
  unsigned set = 0;
#pragma unroll 1
  for (int first = begin; first < end; first += kTogetherSet, set ^= 1) {
    __syncthreads();  // the set's columns are cut, the last one's tiles walked
    if (first > begin) store_columns(p, shared, first - kTogetherSet, set ^ 1, lane);
    fetch.columns(first + kTogetherSet, set ^ 1);
#pragma unroll 1
    for (int place = 0; place < kTogetherSet; ++place) {
      if (place == kTogetherSet - 1) fetch.cut(first + kTogetherSet, set ^ 1);
      __syncwarp();
      inputs.store(s, lane);
      const float(&q)[4] = inputs.factors.q;
      store2(p.q + at + lane_at, {q[0], q[1]});
      store2(p.q + at + lane_at + x.channels, {q[2], q[3]});
      float value[4], factor[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) value[i] = inputs.factors.value[i], factor[i] = inputs.factors.factor[i];
      typename TogetherShared<kSources>::Columns& columns = shared.columns[set][place];
      float C[4];
      load4(columns.C[lane.pair] + lane.state(), C);
      const StateSums<bf16> readout(C);
      __syncwarp();
      fetch.rows(first + place + 2 < end, place % 2);
      Elements r = {};
      TogetherSums total;
      walk_together<kSources>(s, columns, rate, h, readout, lane, r, total, p.no_bits, [&] {
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncwarp();
        inputs.find(s.slot[(place + 1) % 2], shared, lane);
      });
      shared.sums[set][place][lane.warp][lane.lane] = make_float4(total.sum[0], total.sum[1], total.sum[2], total.sum[3]);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        store2(p.dgate + at + lane_at + i * x.channels, {factor[2 * i] * r[i][0], factor[2 * i + 1] * r[i][1]});
        store2(p.gated_readout + at + lane_at + i * x.channels, {value[2 * i] * r[i][0], value[2 * i + 1] * r[i][1]});
      }
      at += kTile * x.channels;
    }
  }
  __syncthreads();
  store_columns(p, shared, end - kTogetherSet, set ^ 1, lane);
}

/// Whether a call has such a kernel, `whole` being what reader_kernel calls so.
template <class T>
bool has_together(const ReaderParams<T>& p, bool whole) {
  return std::is_same_v<T, bf16> && whole && p.x.slices == 1 && p.x.states == kStates && p.x.channels % kChannels == 0 &&
         p.parts <= 2;
}
template <int kSources>
void run_together(const NativeStream& native, const dim3& grid, const ReaderParams<bf16>& p) {
  static_assert(kReaderBlocks<bf16> * (sizeof(TogetherShared<kSources>) + 1024) <= 228 * 1024);
  launch(reader_together_kernel<kSources>, grid, kReaderThreads, sizeof(TogetherShared<kSources>), native, p);
}

}  // namespace dm::cuda::scan::backward
