// A tile of the selective scan backward: how the lanes of a warp share channels, states and tokens, and how tensor cores
// help them.
//
// A warp walks 16 channels through tiles of eight tokens. Its lanes own elements as products of tensor cores hold their
// results (Lane), and so products do what crosses lanes:
//   Δu ⊗ B and ȳ ⊗ C (and q ⊗ C of readers) of 16 channels and 8 states are an m16n8k4 product each. In float32 its four
//   terms are the products of two 11-bit pieces of both factors: as good as a float32 product (2^-21). In bfloat16, where
//   states are saved with 8 bits, one term has the upper 11 bits of both: ȳ ⊗ C and three readers' terms are one product.
//   Sums over states (h · C, λ · B) are products whose eight columns are the tile's tokens, of which one is kept.
//   Sums over channels (Σ Δu λ, Σ ȳ h) are products of states, transposed by movmatrix, with the eight tokens' weights.
// In bfloat16 those sums multiply factors of 8 bits and add in float32; in float32 they are as good as that.
#pragma once

#include "kernels/cuda/scan_backward_common.cuh"
#include "kernels/cuda/scan_math.cuh"

namespace dm::cuda::scan::backward {

inline constexpr int kWarps = kThreads / 32;
inline constexpr int kPairs = kTile / 2;  ///< Pairs of tokens of a tile.
static_assert(kTile == 8 && kStates == 16 && kWarps * kWarpChannels == kChannels);

/// What a lane holds of its states, as results of products do: [j][2·c + i] is state 4·quad + 2·i + j of its channel c, so
/// that neighbours in memory are the same column of both products.
using States = float[2][4];
/// Of its tokens and channels.
using Elements = float[2][2];

__device__ inline float4 vector_of(const Elements& v) {
  return make_float4(v[0][0], v[0][1], v[1][0], v[1][1]);
}
__device__ inline void elements_of(const float4& vector, Elements& v) {
  v[0][0] = vector.x, v[0][1] = vector.y, v[1][0] = vector.z, v[1][1] = vector.w;
}

/// float32 of a warp's channels in a tile, two tokens and two channels to a vector; strides are such that neither the lanes
/// that write (all quads of two pairs at once) nor those that read meet a bank twice, nor those that read two planes.
struct Plane {
  static constexpr int kStride = 10;
  float4 at[kPairs * kStride + 2];

  __device__ void store(const Lane& lane, const Elements& v) { at[kStride * lane.quad + lane.pair] = vector_of(v); }
  /// This lane's channels of tokens 2·s and 2·s + 1.
  __device__ void load(const Lane& lane, int s, Elements& v) const { elements_of(at[kStride * s + lane.pair], v); }
};
/// Both pieces of a plane's values: the first factor of products with Columns.
struct Pieces {
  Plane piece[2];

  __device__ void store(const Lane& lane, const Elements& v) {
    Elements upper, lower;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int c = 0; c < 2; ++c) upper[i][c] = upper_piece(v[i][c]), lower[i][c] = v[i][c] - upper[i][c];
    }
    piece[0].store(lane, upper);
    piece[1].store(lane, lower);
  }
  __device__ void begin() {}
  /// The term that this lane gives to products.
  __device__ void load(const Lane& lane, int s, Elements& v) const {
    piece[lane.quad / 2].load(lane, s, v);
  }
  __device__ void load_whole(const Lane& lane, int s, Elements& v) const {
    Elements lower;
    piece[0].load(lane, s, v);
    piece[1].load(lane, s, lower);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int c = 0; c < 2; ++c) v[i][c] += lower[i][c];
    }
  }
};

/// Stores the first factor of products with columns as they are in memory; what they drop is made up for here.
__device__ inline void store_rounded(Plane& to, const Lane& lane, const Elements& v) {
  to.store(lane, {{v[0][0] * kDropped, v[0][1] * kDropped}, {v[1][0] * kDropped, v[1][1] * kDropped}});
}
/// The same of one term: the upper bits alone, to the lanes of term 0.
class Rounded {
 public:
  __device__ void store(const Lane& lane, const Elements& v) { store_rounded(value_, lane, v); }
  __device__ void load(const Lane& lane, int s, Elements& v) const { of_term(lane.quad == 0).load(lane, s, v); }
  /// What lanes of term 0 load, or others.
  __device__ const Plane& of_term(bool first) const { return first ? value_ : zero_; }
  /// Once, by a warp.
  __device__ void begin() {
    for (int i = threadIdx.x % 32; i < static_cast<int>(sizeof(zero_.at) / sizeof(float4)); i += 32) zero_.at[i] = {};
  }

 private:
  Plane value_, zero_;
};

__device__ inline void store_terms(Plane (&to)[1], const Lane& lane, const Elements& v) {
  store_rounded(to[0], lane, v);
}
__device__ inline void store_terms(Plane (&to)[2], const Lane& lane, const Elements& v) {
  reinterpret_cast<Pieces&>(to).store(lane, v);
}

/// Both pieces of B or C of a tile, four tokens to a vector, states in the order in which products' columns hold them.
struct Columns {
  static constexpr int kPiece = 10, kProduct = 20;
  float4 at[kTile / 4][2 * kProduct];

  /// Thread `thread` of 64 cuts its share of raw columns, one of four tokens, into pieces.
  __device__ void fill(const float (*raw)[kStates], int thread) {
    const int n = thread % kStates, half = thread / kStates % 2, piece = thread / (2 * kStates);
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float whole = raw[half * 4 + i][n], upper = upper_piece(whole);
      v[i] = piece ? whole - upper : upper;
    }
    store4(reinterpret_cast<float*>(&at[half][n % 2 * kProduct + piece * kPiece + n / 2]), v);
  }
  /// The terms that this lane gives to the two products of each of tokens 4·half … 4·half + 3.
  __device__ void load(const Lane& lane, int half, float (&v)[2][4]) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      load4(reinterpret_cast<const float*>(&at[half][j * kProduct + lane.quad % 2 * kPiece + lane.pair]), v[j]);
    }
  }
  /// Of tokens 2·s and 2·s + 1 alone.
  __device__ void load_pair(const Lane& lane, int s, float (&v)[2][2]) const {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float4& four = at[s / 2][j * kProduct + lane.quad % 2 * kPiece + lane.pair];
      load2(reinterpret_cast<const float*>(&four) + s % 2 * 2, v[j]);
    }
  }
};

/// The second factors that a lane gives to the products of a tile, B or C as they are in memory.
template <class T>
class Factors {
 public:
  using First = Rounded;
  struct Cut {};
  __device__ Factors(const float (*raw)[kStates], const Cut&) : raw_(raw) {}
  /// Of tokens 2·s and 2·s + 1; kForward: pairs are asked for in this order.
  template <bool kForward>
  __device__ void load(const Lane& lane, int s) {
#pragma unroll
    for (int i = 0; i < 2; ++i) load2(raw_[2 * s + i] + 2 * lane.pair, v_[i]);
  }
  __device__ float at(int j, int t) const {
    return v_[t % 2][j];
  }

 private:
  const float (*raw_)[kStates];
  float v_[2][2];
};
/// In float32 both pieces of them.
template <>
class Factors<float> {
 public:
  using First = Pieces;
  using Cut = Columns;
  __device__ Factors(const float (*)[kStates], const Cut& cut) : cut_(cut) {}
  template <bool kForward>
  __device__ void load(const Lane& lane, int s) {
    if (s % 2 == (kForward ? 0 : 1)) cut_.load(lane, s / 2, v_);
  }
  __device__ float at(int j, int t) const { return v_[j][t % 4]; }

 private:
  const Columns& cut_;
  float v_[2][4];
};

}  // namespace dm::cuda::scan::backward
