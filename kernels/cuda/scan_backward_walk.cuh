// Steps of the selective scan backward: a warp's states forward through a tile and their adjoint back.
#pragma once

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

/// λ's new part of two tokens: ȳ ⊗ C and the readers' q ⊗ C, and what enters a tile from behind. kReaders as the kernel's.
/// A product has four terms, one to each lane of a quad: ȳ's and those of three readers, and of four more readers each.
template <class T, int kReaders>
class Drive {
 public:
  __device__ Drive(MainShared<T>& s, const Lane& lane, int tile, int readers)
      : s_(s), lane_(lane), tile_(tile), readers_(readers), term_(term(0)) {}
  __device__ void find(int pair, const States& carry, States (&driven)[2]) const {
    constexpr States kNone = {};
    add(term_, pair, kNone, pair == kPairs - 1 ? carry : kNone, driven);
    if constexpr (kReaders < 0) {
#pragma unroll 1
      for (int k = 1; k <= MainShared<T>::products(readers_); ++k) add(term(k), pair, driven[0], driven[1], driven);
    }
  }

 private:
  struct Term {
    const Plane* first;
    const float (*C)[kStates];
  };
  /// This lane's of product k: nothing times ȳ's C where there is none.
  __device__ Term term(int k) const {
    const Rounded& dy = s_.warp[lane_.warp].dy;
    const float(*C)[kStates] = s_.raw[tile_ & 3].C;
    const int reader = 4 * k + lane_.quad - 1;
    if constexpr (kReaders == 0) return {&dy.of_term(reader < 0), C};
    const bool reads = reader >= 0 && reader < readers_;
    const int bytes = reads ? reader * static_cast<int>(sizeof(typename MainShared<T>::Reader)) : 0;
    const Plane* const own = &dy.of_term(true);
    const int to_q = distance(own, s_.reader(0).q[lane_.warp]) + bytes,
              to_C = distance(C, s_.reader(0).raw[tile_ & 3]) + bytes;
    return {behind(own, reads ? to_q : reader < 0 ? 0 : distance(own, &dy.of_term(false))), behind(C, reads ? to_C : 0)};
  }
  /// Bytes: the compiler sees that what lies so far behind something in shared memory is there too.
  static __device__ int distance(const void* from, const void* to) {
    return static_cast<int>(static_cast<const unsigned char*>(to) - static_cast<const unsigned char*>(from));
  }
  template <class Factor>
  static __device__ const Factor* behind(const Factor* from, int bytes) {
    return reinterpret_cast<const Factor*>(reinterpret_cast<const unsigned char*>(from) + bytes);
  }
  __device__ void add(const Term& term, int pair, const States& to_first, const States& to_second,
                      States (&driven)[2]) const {
    Elements v;
    term.first->load(lane_, pair, v);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float C[2];
      load2(term.C[2 * pair + i] + 2 * lane_.pair, C);
#pragma unroll
      for (int j = 0; j < 2; ++j) product_k4(driven[i][j], (i == 0 ? to_first : to_second)[j], v[i][0], v[i][1], C[j]);
    }
  }

  MainShared<T>& s_;
  const Lane& lane_;
  int tile_, readers_;
  Term term_;
};
/// In float32 the terms are the products of two pieces each.
template <int kReaders>
class Drive<float, kReaders> {
 public:
  __device__ Drive(MainShared<float>& s, const Lane& lane, int tile, int readers)
      : s_(s), lane_(lane), tile_(tile), readers_(readers), C_(s.raw[tile & 3].C, s.cut[tile & 1].C) {}
  __device__ void find(int pair, const States& carry, States (&driven)[2]) {
    constexpr States kNone = {};
    Elements dy;
    s_.warp[lane_.warp].dy.load(lane_, pair, dy);
    C_.template load<false>(lane_, pair);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int t = 2 * pair + i;
        product_k4(driven[i][j], (t == kTile - 1 ? carry : kNone)[j], dy[i][0], dy[i][1], C_.at(j, t));
      }
    }
#pragma unroll(kReaders > 0 ? kReaders : 1)
    for (int k = 0; k < (kReaders >= 0 ? kReaders : readers_); ++k) {
      Elements q;
      float C[2][2];
      s_.reader(k).q[lane_.warp][lane_.quad / 2].load(lane_, pair, q);
      s_.reader(k).C[tile_ & 1].load_pair(lane_, pair, C);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) product_k4(driven[i][j], driven[i][j], q[i][0], q[i][1], C[j][i]);
      }
    }
  }

 private:
  MainShared<float>& s_;
  const Lane& lane_;
  int tile_, readers_;
  Factors<float> C_;
};

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
