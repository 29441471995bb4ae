// A tile of the selective scan forward: how the lanes of a warp share channels and states, and how tensor cores help them.
//
// A warp walks 16 channels, a lane two of them and four states of each: channels 2·pair and 2·pair + 1, states 4·quad to
// 4·quad + 3, with lane = 4·pair + quad. This is how m16n8 products hold their results, so that two kinds of them take work
// off the step loop:
//   Δu ⊗ B of all 16 channels and 8 states is one m16n8k4 product. A tf32 number has 11 bits. In float32 both factors are
//   cut into two such pieces, whose four products are the four terms of k: as good as a float32 product (2^-21). In
//   bfloat16, where states are saved with 8 bits, all four terms are the same, a quarter of the upper bits' product: so
//   nobody cuts anything, all lanes of a channel read the same, and B is taken as it was fetched.
//   h · C is one m16n8k8 product for 8 states, whose eight columns hold C of eight tokens. One column is of use, and the
//   four lanes' states are summed on the way. In float32 this is done with both pieces of h and of C (2^-20); in bfloat16
//   with the upper bits only (2^-10 of each term, where a stored output has 2^-9).
// What remains of a state-step are two FP32 instructions, an ex2 and 0.8 floats from shared memory, which returns 32 of them
// a clock to a multiprocessor: ex2 (16 a clock) is the bound, and Walk is about keeping its unit busy.
#pragma once

#include "kernels/cuda/scan_math.cuh"

namespace dm::cuda::scan::forward {

inline constexpr int kTile = 16;  ///< Tokens of a tile.
inline constexpr int kGroup = 8;  ///< Tokens of a readout, and between saved states.
inline constexpr int kQuads = kTile / 4;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kWarpChannels = kChannels / kWarps;
static_assert(kWarpChannels == 16 && kGroup == kSavedTokens);

/// A place that the compiler keeps in a register, since it would find it again for every tile; in float32 it has none left.
template <class T>
__device__ int kept(int place) {
  if constexpr (!std::is_same_v<T, float>) asm("" : "+r"(place));
  return place;
}

struct Lane {
  int warp;  ///< of the four that share a block's channels
  int pair, quad, first_channel, first_state;

  __device__ Lane() {
    warp = threadIdx.x / 32 % kWarps, pair = threadIdx.x % 32 / 4, quad = threadIdx.x % 4;
    first_channel = warp * kWarpChannels + 2 * pair;  // of the block's
    first_state = 4 * quad;
  }
};

/// A tile of an activation, 16 channels to a warp. A row is left out after every four, so that lanes that read rows four or
/// two apart meet no bank twice.
template <class T>
struct alignas(16) Rows {
  static constexpr int kRows = kTile + kQuads;
  T at[kWarps][kRows][kWarpChannels];

  /// Of a warp's row, in elements.
  static __device__ int place(int warp, int token) { return (warp * kRows + token + token / 4) * kWarpChannels; }
  __device__ T* row(int warp, int token) { return at[warp][token + token / 4]; }
  __device__ const T* row(int warp, int token) const { return at[warp][token + token / 4]; }
};
/// Where a lane that makes finds its channels of tokens 4 · quad and 2 · quad in Rows.
template <class T>
struct MakerLane : Lane {
  const int quad_row = kept<T>(Rows<T>::place(warp, 4 * quad) + 2 * pair);
  const int group_row = kept<T>(Rows<T>::place(warp, 2 * quad) + 2 * pair);

  /// Token 4 · quad + i, and token begin + 2 · quad + i with `begin` a multiple of 8.
  __device__ const T* of_quad(const Rows<T>& rows, int i) const { return rows.at[0][0] + quad_row + i * kWarpChannels; }
  __device__ const T* of_group(const Rows<T>& rows, int begin, int i) const {
    return rows.at[0][0] + group_row + (begin + begin / 4 + i) * kWarpChannels;
  }
};

/// Δ and, as terms of a product, Δu: its two pieces (kExact) or a quarter of it. Of lane-sized vectors as `prepare` makes
/// them.
template <bool kExact>
using Values = float[kExact ? 3 : 2][8];

/// Values of a warp's channels: vectors of two tokens and two channels. Strides are such that neither the lanes that write
/// (all quads of two pairs at once) nor those that read meet a bank twice.
template <bool kExact>
struct Drive {
  static constexpr int kStride = kWarpChannels + 2;
  static constexpr float kTerm = 0.25f * kDropped;
  float4 delta[kQuads * kStride];
  float4 input[kExact ? 2 : 1][kQuads * kStride + 2];

  static __device__ int at(int quad, int half, const Lane& lane) { return kStride * quad + 8 * half + lane.pair; }

  /// Of the term that this lane gives to products, its pair's channels and the first two tokens.
  __device__ const float4& first_term(const Lane& lane) const { return input[kExact ? lane.quad / 2 : 0][lane.pair]; }

  __device__ void store(const Values<kExact>& values, const Lane& lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const auto vector = [&](int i) {
        const float* v = values[i] + 4 * half;
        return make_float4(v[0], v[1], v[2], v[3]);
      };
      const int place = at(lane.quad, half, lane);
      delta[place] = vector(0), input[0][place] = vector(1);
      if constexpr (kExact) input[1][place] = vector(2);
    }
  }
};

/// Of this lane's two channels and four tokens, [2·token + channel]; not kExact, Δu is multiplied by `term`. Tokens from
/// `tokens` on are the identity.
template <bool kExact, Fit kFit, class T>
__device__ void prepare(Values<kExact>& values, float term, const Rows<T>& u, const Rows<T>& dt, const float (&bias)[2],
                        const MakerLane<T>& lane, int tokens) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int t = 4 * lane.quad + i;
    float us[2], dts[2];
    load2(lane.of_quad(u, i), us);
    load2(lane.of_quad(dt, i), dts);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int k = 2 * i + c;
      float delta = softplus<T>(dts[c] + bias[c]);
      if (kFit != Fit::whole && tokens < kTile) delta = t < tokens ? delta : 0.0f;
      const float input = delta * us[c];
      values[0][k] = delta;
      if constexpr (kExact) {
        values[1][k] = upper_piece(input), values[2][k] = input - values[1][k];
      } else {
        values[1][k] = input * term;
      }
    }
  }
}

/// B of a tile, four tokens to a vector, states in the order in which the columns of two products hold them.
template <bool kExact>
struct InputColumns {
  static constexpr int kProduct = 8;
  float4 at[kQuads][2 * kProduct];

  __device__ const float4& first_term(const Lane& lane) const { return at[0][lane.pair]; }

  /// By the whole block from device memory, asynchronously; zeros outside.
  template <Fit kFit>
  __device__ void fetch(const float* from, const Extents& x, std::int64_t single, int first_token) {
    const int n = threadIdx.x % kStates, t = threadIdx.x / kStates;
    float* const place = reinterpret_cast<float*>(&at[t / 4][n / 2 % 2 * kProduct + n / 4 * 2 + n % 2]) + t % 4;
    static_assert(kThreads == 8 * kStates && kTile == 16);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const float* const one = from + (single + static_cast<std::int64_t>(8 * k) * x.columns);
      const bool inside = kFit == Fit::whole || (first_token + t + 8 * k < x.tokens && n < x.states);
      copy4_async(place + k * sizeof(at) / 2 / sizeof(float), inside ? one : from, inside);
    }
  }
};
/// In float32 its two pieces.
template <>
struct InputColumns<true> {
  static constexpr int kPiece = 10, kProduct = 20;
  float4 at[kQuads][2 * kProduct];

  __device__ const float4& first_term(const Lane& lane) const { return at[0][lane.quad % 2 * kPiece + lane.pair]; }

  /// Cuts raw columns into pieces, by the whole block.
  __device__ void fill(const float (*raw)[kStates]) {
    const int n = threadIdx.x % kStates, quad = threadIdx.x / kStates % kQuads, piece = threadIdx.x / (kStates * kQuads);
    static_assert(kThreads == 2 * kStates * kQuads);
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float whole = raw[4 * quad + i][n], upper = upper_piece(whole);
      v[i] = piece ? whole - upper : upper;
    }
    store4(reinterpret_cast<float*>(&at[quad][n / 2 % 2 * kProduct + piece * kPiece + n / 4 * 2 + n % 2]), v);
  }
};

/// C of a tile, as it is or in two pieces.
template <bool kExact>
struct ReadoutColumns {
  float at[kExact ? 2 : 1][kTile][kStates];

  /// By `threads` threads, of which this is `thread`.
  __device__ void fill(const float (*raw)[kStates], int thread, int threads) {
#pragma unroll 2
    for (int i = 4 * thread; i < kTile * kStates; i += 4 * threads) {
      float v[4], lower[4];
      load4(raw[0] + i, v);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float piece = kExact ? upper_piece(v[k]) : v[k];
        lower[k] = v[k] - piece, v[k] = piece;
      }
      store4(at[0][0] + i, v);
      if constexpr (kExact) store4(at[1][0] + i, lower);
    }
  }
};

/// C of eight tokens as this lane gives it to the products, and h · C of one of them.
template <bool kExact>
struct Readout {
  float C[kExact ? 2 : 1][4];

  __device__ void load(const ReadoutColumns<kExact>& columns, int token, const Lane& lane) {
    load(columns.at[0][token + lane.pair] + lane.first_state);
  }
  /// Of the eight tokens in whose upper pieces this lane's are at `from`.
  __device__ void load(const float* from) {
#pragma unroll
    for (int piece = 0; piece < (kExact ? 2 : 1); ++piece) load4(from + piece * kTile * kStates, C[piece]);
  }
  /// Of token 4·half + i to y, [token][channel] of tokens 2·quad and 2·quad + 1, on the lanes that own it; added to what is
  /// there when `add`.
  __device__ void store(int half, int i, const float (&h)[2][4], const Lane& lane, bool add, float (&y)[2][2]) const {
    float sums[4] = {};
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float whole[4] = {h[0][2 * j], h[1][2 * j], h[0][2 * j + 1], h[1][2 * j + 1]};
      if constexpr (kExact) {
        add_exact_product_k8(sums, whole, {C[0][2 * j], C[0][2 * j + 1]}, {C[1][2 * j], C[1][2 * j + 1]});
      } else {
        add_product_k8(sums, whole, C[0][2 * j], C[0][2 * j + 1]);
      }
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float& to = y[i % 2][c];
      const float sum = sums[2 * c + i % 2];
      to = lane.quad == 2 * half + i / 2 ? (add ? to + sum : sum) : to;
    }
  }
};

}  // namespace dm::cuda::scan::forward
