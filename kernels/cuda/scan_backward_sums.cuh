// Sums over states and over channels of a tile of the selective scan backward, by tensor cores.
#pragma once

#include "kernels/cuda/scan_backward_tile.cuh"

namespace dm::cuda::scan::backward {

/// d = a b of pairs of bfloat16.
__device__ inline void product_k16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.0f));
}
__device__ inline unsigned pack2(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}
/// An 8 × 8 matrix of 16-bit values, two of row `pair` to a lane.
__device__ inline unsigned transposed(unsigned x) {
  unsigned y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}
/// States as a factor of bfloat16 products, [2·j + c]; nothing in float32.
template <class T>
struct Packed {
  unsigned at[4];
  __device__ explicit Packed(const States& v) {
#pragma unroll
    for (int k = 0; k < 4; ++k) at[k] = pack2(v[k / 2][k % 2 * 2], v[k / 2][k % 2 * 2 + 1]);
  }
};
template <>
struct Packed<float> {
  __device__ explicit Packed(const States&) {}
};

/// To the lanes that own token 2·s + i, from a product's results.
__device__ inline void keep_token(const float (&sums)[4], const Lane& lane, int s, int i, Elements& to) {
#pragma unroll
  for (int c = 0; c < 2; ++c) to[i][c] = lane.quad == s ? sums[2 * c + i] : to[i][c];
}

/// Sums over states of h · C or λ · B, by factors of 8 bits.
template <class T>
struct StateSums {
  unsigned low, high;

  __device__ StateSums(const float (*raw)[kStates], const Lane& lane) {
    float v[4];
    load4(raw[lane.pair] + lane.state(), v);
    *this = StateSums({v[0], v[2], v[1], v[3]});
  }
  /// Of the column of token `pair`: [2·j + i] goes with [j][i] and [j][2 + i] of the states.
  explicit __device__ StateSums(const float (&v)[4]) : low(pack2(v[0], v[1])), high(pack2(v[2], v[3])) {}
  __device__ void add(const States&, const Packed<T>& packed, const Lane& lane, int s, int i, Elements& to) const {
    float sums[4];
    product_k16(sums, packed.at, low, high);
    keep_token(sums, lane, s, i, to);
  }
};
/// In float32 by both pieces of both factors, found anew for each token: registers are short.
template <>
struct StateSums<float> {
  const float (*raw)[kStates];

  __device__ StateSums(const float (*raw)[kStates], const Lane&) : raw(raw) {}
  __device__ void add(const States& v, const Packed<float>&, const Lane& lane, int s, int i, Elements& to) const {
    float sums[4] = {}, four[4];
    load4(raw[lane.pair] + lane.state(), four);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float column[2] = {four[j], four[2 + j]};
      const float upper[2] = {upper_piece(column[0]), upper_piece(column[1])};
      const float row[4] = {v[j][0], v[j][2], v[j][1], v[j][3]};
      add_exact_product_k8(sums, row, upper, {column[0] - upper[0], column[1] - upper[1]});
    }
    keep_token(sums, lane, s, i, to);
  }
};

/// Sums over lanes that share channels, of two tokens at once: even columns of a product sum the first one's.
template <bool kExact>
struct LaneSums {
  float even, odd;

  __device__ explicit LaneSums(const Lane& lane) : even(lane.pair % 2 ? 0.0f : 1.0f), odd(1.0f - even) {}
  __device__ void add(const Elements& v, const Lane& lane, int s, Elements& to) const {
    float sums[4] = {}, upper[4] = {v[0][0], v[0][1], v[1][0], v[1][1]};
    if constexpr (kExact) {
      float lower[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float whole = upper[k];
        upper[k] = upper_piece(whole), lower[k] = whole - upper[k];
      }
      add_product_k8(sums, lower, even, odd);
    }
    add_product_k8(sums, upper, even, odd);
#pragma unroll
    for (int i = 0; i < 2; ++i) keep_token(sums, lane, s, i, to);
  }
};

/// Weights of a tile's tokens and a warp's channels as bfloat16.
struct Weights {
  static constexpr int kStride = 12;
  unsigned at[kTile * kStride];

  __device__ void store(const Lane& lane, const Elements& v) {
#pragma unroll
    for (int i = 0; i < 2; ++i) at[(2 * lane.quad + i) * kStride + lane.pair] = pack2(v[i][0], v[i][1]);
  }
};

/// Where sums over a warp's channels lie: a column of products of both kinds to a stretch, tokens' pairs swapped so that
/// neither those who write nor those who read meet a bank twice.
struct alignas(16) ColumnSums {
  static constexpr int kColumn = 3 * kTile;
  float at[kStates / 2 * kColumn];

  /// Of tokens 2·s and 2·s + 1.
  static __device__ int place(int state, int s) {
    const int column = state / 2;
    return column * kColumn + state % 2 * kTile + 2 * (s ^ (column / 4 + column % 2 * 2));
  }
};

/// Sums over a warp's channels, weighted, for each state and token of a tile.
template <class T>
struct WeightedSums {
  using Weight = Weights;
  unsigned low, high;
  float sum[4] = {};  ///< [2·j + i]: state 2·pair + j, token 2·quad + i

  __device__ WeightedSums(const Weights& weights, const Lane& lane) {
    const uint2 words = *reinterpret_cast<const uint2*>(&weights.at[lane.pair * Weights::kStride + 2 * lane.quad]);
    low = __byte_perm(words.x, words.y, 0x5410), high = __byte_perm(words.x, words.y, 0x7632);
  }
  __device__ void add(const States&, const Packed<T>& packed, const Lane& lane, int s, int i, ColumnSums&) {
    const unsigned states[4] = {transposed(packed.at[0]), transposed(packed.at[2]), transposed(packed.at[1]),
                                transposed(packed.at[3])};
    float d[4];
    product_k16(d, states, low, high);
#pragma unroll
    for (int j = 0; j < 2; ++j) sum[2 * j + i] = lane.quad == s ? d[2 * j + i] : sum[2 * j + i];
  }
  /// `place`: of state 2·pair and the tokens 2·quad.
  __device__ void store(ColumnSums& to, int place) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      *reinterpret_cast<float2*>(&to.at[place + j * kTile]) = make_float2(sum[2 * j], sum[2 * j + 1]);
    }
  }
};
/// In float32 by shuffles.
template <>
struct WeightedSums<float> {
  using Weight = Pieces;
  const Pieces& weights;

  __device__ WeightedSums(const Pieces& weights, const Lane&) : weights(weights) {}
  __device__ void add(const States& v, const Packed<float>&, const Lane& lane, int s, int i, ColumnSums& to) const {
    Elements weight;
    weights.load_whole(lane, s, weight);
    float x[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) x[n] = weight[i][0] * v[n % 2][n / 2] + weight[i][1] * v[n % 2][2 + n / 2];
    const bool upper16 = (lane.pair & 4) != 0, upper8 = (lane.pair & 2) != 0;
    const float low = scatter_sum(x[0], x[2], upper16, 16), high = scatter_sum(x[1], x[3], upper16, 16);
    float sum = scatter_sum(low, high, upper8, 8);
    sum += exchange(sum, 4);
    const int state = lane.state() + (upper16 ? 2 : 0) + (upper8 ? 1 : 0);
    if (lane.pair % 2 == 0) to.at[ColumnSums::place(state, s) + i] = sum;
  }
  __device__ void store(ColumnSums&, int) const {}
};

}  // namespace dm::cuda::scan::backward
