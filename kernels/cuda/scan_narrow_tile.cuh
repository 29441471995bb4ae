// The selective scan forward where channels are few: a block's 16 channels, so that whole sequences fill a GPU.
//
// Time is cut into parts of 16 tokens. Four warps a recurrence walk all parts, 8 channels and 8 states to a warp, a lane one
// channel and two states. Four warps make, each every fourth part, which has a slot of its own in a ring. No warp waits for
// its like: a walker waits until a part is made, a maker until all have walked the one before it in its slot, four parts
// ago. A maker has Δ and Δu of its next part in registers by then, hands them over, and turns to the readout of the last one
// and to what comes two turns later.
//
// Two states a lane take three floats a token from shared memory, where eight take six (scan_forward_tile.cuh): the price of
// four times the lanes. It is far below that of cutting time into segments, which walks everything twice.
#pragma once

#include "kernels/cuda/scan_forward_params.cuh"
#include "kernels/cuda/scan_forward_walk.cuh"
#include "kernels/cuda/warp_barrier.cuh"

namespace dm::cuda::scan::forward {

inline constexpr int kNarrowChannels = 16;  ///< Of a block.
inline constexpr int kRing = kWarps;        ///< Parts between makers and walkers: one of each maker.

/// Δ and terms of Δu of a part: vectors of four tokens of a channel. Neither the lanes that write (all quads of two
/// pairs of channels at once) nor those that read (two channels, two terms) meet a bank twice. kExact: terms are the two
/// pieces of Δu. Otherwise they are a half of the even tokens and of the odd ones, zeros between them: a product's terms are
/// two tokens, twice, and one product serves both, where pieces take one of their own each.
template <bool kExact>
struct NarrowDrive {
  static constexpr float kTerm = 0.5f * kDropped;
  static constexpr int kPiece = kNarrowChannels * kQuads + 1;
  float4 delta[kNarrowChannels * kQuads];
  float4 input[2 * kPiece];

  static __device__ int at(int channel, int quad) { return ((4 * channel) ^ (channel & 2 ? 4 : 0)) + quad; }

  __device__ void store(const Values<kExact>& values, const Lane& lane) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const auto vector = [&](int i) {
        return make_float4(values[i][c], values[i][2 + c], values[i][4 + c], values[i][6 + c]);
      };
      const int place = at(2 * lane.pair + c, lane.quad);
      delta[place] = vector(0);
      if constexpr (kExact) {
        input[place] = vector(1), input[kPiece + place] = vector(2);
      } else {
        const float* const v = values[1] + c;
        input[place] = make_float4(v[0], 0.0f, v[4], 0.0f), input[kPiece + place] = make_float4(0.0f, v[2], 0.0f, v[6]);
      }
    }
  }
};

/// B of a part as it was fetched: of each quad and half of the states, even and odd tokens, two to a vector.
template <bool kExact>
struct NarrowColumns {
  float2 at[kQuads][2][2][kStates / 2];

  static __device__ int at_token(int t, int n) {
    return ((t / 4 * 2 + n / 8) * 2 + t % 2) * kStates + n % 8 * 2 + t / 2 % 2;  // in floats
  }
};
/// In float32 its two pieces, four tokens to a vector.
template <>
struct NarrowColumns<true> {
  static constexpr int kPiece = kStates + 2;
  float4 at[kQuads][2 * kPiece];

  /// Cuts raw columns into pieces, by a warp.
  __device__ void fill(const float (*raw)[kStates]) {
    const int n = threadIdx.x % kStates, first = threadIdx.x % 32 / kStates;
#pragma unroll
    for (int quad = first; quad < kQuads + first; quad += 2) {
      float upper[4], lower[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float whole = raw[4 * quad + i][n];
        upper[i] = upper_piece(whole), lower[i] = whole - upper[i];
      }
      store4(reinterpret_cast<float*>(&at[quad][n]), upper);
      store4(reinterpret_cast<float*>(&at[quad][kPiece + n]), lower);
    }
  }
};

template <class T, int kRecurrences>
struct alignas(16) NarrowShared {
  static constexpr int kSources = kRecurrences - 1, kGates = kSources > 0 ? 2 : 0;
  static constexpr bool kExact = std::is_same_v<T, float>;
  struct Raw {
    Rows<T> dt[kRecurrences], source_u[kSources];
    struct Cut {  // before they are cut
      float B[kRecurrences][kWarps][kTile][kStates], C[kWarps][kTile][kStates];
    } columns[kExact ? 1 : 0];
  } raw[2];
  Rows<T> u[4], z[2], gate[kGates];
  struct Part {
    NarrowDrive<kExact> drive[kRecurrences];
    NarrowColumns<true> input[kExact ? kRecurrences : 0];
    ReadoutColumns<true> readout[kExact ? 1 : 0];
  } ring[kRing];
  /// Columns that walkers read as they are fetched, two turns ahead: of four turns of each maker.
  static constexpr int kFetched = kExact ? 0 : 4 * kRing;
  struct Columns {
    NarrowColumns<false> input[kRecurrences];
    ReadoutColumns<false> readout;
  } columns[kFetched];
  /// h · C of two tokens by lanes of a quad; summed over eight states, the other eight beside them. Twice as many as parts,
  /// so that a part is handed over before the readout of the last one in its slot is taken.
  struct Readouts {
    static constexpr int kQuad = kNarrowChannels + 4;
    float2 of[kTile / kGroup][2][kQuads * kQuad];
  } y[2 * kRing][kRecurrences];
  WarpBarrier made[kRing], walked[kRing];  ///< Of the part in each slot; phases are its maker's turns.

  /// By all threads of the block, before anything else.
  __device__ void start() {
    if (threadIdx.x < kRing) made[threadIdx.x].start(1), walked[threadIdx.x].start(kRecurrences * kWarps);
    __syncthreads();
  }
};

}  // namespace dm::cuda::scan::forward
