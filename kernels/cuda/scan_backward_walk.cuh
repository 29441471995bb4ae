// Steps of the selective scan backward: a warp's states forward through a tile and their adjoint back.
#pragma once

#include "kernels/cuda/scan_backward_drive.cuh"
#include "kernels/cuda/scan_backward_prepare.cuh"

namespace dm::cuda::scan::backward {

/// What a thread carries over all of time.
struct Walker {
  States rate, carry;

  template <class T>
  __device__ Walker(const MainParams<T>& p, const Lane& lane) {
    const Extents& x = p.x;
    const int channel = channel_of(lane);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const bool inside = channel + c < x.channels;
      const std::int64_t behind = p.segments.state_row(x, blockIdx.y, blockIdx.z, p.slice, channel + c) + lane.state();
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        rate[n % 2][2 * c + n / 2] = rate_of(p.own, x, channel + c, p.slice * kStates + lane.state() + n);
        carry[n % 2][2 * c + n / 2] = p.segments.count > 1 && inside ? p.segments.states[behind + n] : 0.0f;
      }
    }
  }
};

/// Decays of a tile, its states before each step times them, and sums over states.
struct Tile {
  States decay[kTile], turned[kTile];
  Elements dinput = {}, dexponent = {};  ///< λ B, λ exp(ΔA) h A log2(e)
};

/// What a lane keeps of a tile in registers until its elements are finished.
template <class T>
struct Walked {
  Elements dinput = {}, dexponent = {};
  Pair<T> u[2], gated[2];

  __device__ void keep(const Tile& tile, const RawRows<T>& u_rows, const RawRows<T>& gated_rows, bool has_gated,
                       const Lane& lane) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int c = 0; c < 2; ++c) dinput[i][c] = tile.dinput[i][c], dexponent[i][c] = tile.dexponent[i][c];
      u[i].load(u_rows, 2 * lane.quad + i, lane);
      if (has_gated) gated[i].load(gated_rows, 2 * lane.quad + i, lane);
    }
  }
};

/// Forward through a tile: states, h · C and C̄. Exponentials are what these steps wait for, so `beside` does in between what
/// the tile does for others: run(i) after pair i of tokens.
template <class T, class Besides>
__device__ void walk_forward(MainShared<T>& s, int tile, const Walker& walker, const Lane& lane, Tile& own, ColumnSums& dC,
                             Besides& beside) {
  typename MainShared<T>::Warp& warp = s.warp[lane.warp];
  const StateSums<T> readout(s.raw[tile & 3].C, lane);
  Elements readouts = {};
  WeightedSums<T> sums(warp.dy_weights, lane);
  States h;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    float v[4];
    load4(&s.rows[tile & 1].states[lane.channel() + c][lane.state()], v);
#pragma unroll
    for (int n = 0; n < 4; ++n) h[n % 2][2 * c + n / 2] = v[n];
  }
  Factors<T> B(s.raw[tile & 3].B, s.cut[tile & 1].B);
#pragma unroll
  for (int pair = 0; pair < kPairs; ++pair) {
    Elements delta, input;
    warp.delta.load(lane, pair, delta);
    warp.input.load(lane, pair, input);
    B.template load<true>(lane, pair);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = 2 * pair + i;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          own.decay[t][j][k] = exp2_fast(delta[i][k / 2] * walker.rate[j][k]);
          own.turned[t][j][k] = own.decay[t][j][k] * h[j][k];
        }
        product_k4(h[j], own.turned[t][j], input[i][0], input[i][1], B.at(j, t));
      }
      const Packed<T> packed(h);
      readout.add(h, packed, lane, pair, i, readouts);
      sums.add(h, packed, lane, pair, i, dC);
    }
    beside.run(pair);
  }
  sums.store(dC, s.column_sums[threadIdx.x].place);
  warp.readout[threadIdx.x % 32] = vector_of(readouts);
}

/// The adjoint recurrence from a tile's end: λ · B, B̄, Ā and the exponents' cotangent.
template <class T, int kReaders>
__device__ void walk_backward(MainShared<T>& s, int tile, int readers, Walker& walker, const Lane& lane, Tile& own,
                              ColumnSums& dB) {
  typename MainShared<T>::Warp& warp = s.warp[lane.warp];
  const StateSums<T> dinput(s.raw[tile & 3].B, lane);
  States drate;
  const int kept = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < 2; ++j) load4(reinterpret_cast<const float*>(&warp.drate[j][kept]), drate[j]);
  const LaneSums<MainShared<T>::kExact> dexponent(lane);
  WeightedSums<T> sums(warp.input_weights, lane);
  Drive<T, kReaders> drive(s, lane, tile, readers);
  States lambda;
#pragma unroll
  for (int pair = kPairs - 1; pair >= 0; --pair) {
    Elements delta;
    warp.delta.load(lane, pair, delta);
    States driven[2];
    drive.find(pair, walker.carry, driven);
    Elements exponent;
#pragma unroll
    for (int i = 1; i >= 0; --i) {
      const int t = 2 * pair + i;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          lambda[j][k] = t == kTile - 1 ? driven[i][j][k] : driven[i][j][k] + own.decay[t + 1][j][k] * lambda[j][k];
          const float slope = lambda[j][k] * own.turned[t][j][k];
          drate[j][k] += slope * delta[i][k / 2];
          float& sum = exponent[i][k / 2];
          sum = j == 0 && k % 2 == 0 ? slope * walker.rate[j][k] : sum + slope * walker.rate[j][k];
        }
      }
      const Packed<T> packed(lambda);
      dinput.add(lambda, packed, lane, pair, i, own.dinput);
      sums.add(lambda, packed, lane, pair, i, dB);
    }
    dexponent.add(exponent, lane, pair, own.dexponent);
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int k = 0; k < 4; ++k) walker.carry[j][k] = own.decay[0][j][k] * lambda[j][k];
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) store4(reinterpret_cast<float*>(&warp.drate[j][kept]), drate[j]);
  sums.store(dB, s.column_sums[threadIdx.x].place);
}

}  // namespace dm::cuda::scan::backward
