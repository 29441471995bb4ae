// Copies of the selective scan forward's tiles from device memory, by a block of the threads that make.
#pragma once

#include "kernels/cuda/scan_forward_tile.cuh"

namespace dm::cuda::scan::forward {

/// Where this thread's share of a tile lies in activations and projections of one sequence; moves a tile at a time, so that
/// no address is computed twice.
template <class T>
struct Source {
  static constexpr int kEach = 16 / static_cast<int>(sizeof(T)), kRow = kChannels / kEach;
  std::int64_t row;     ///< of an activation: the first of kEach channels of the first token
  std::int64_t column;  ///< of a projection: the first of four B's or C's (the upper half of the block's threads)
  std::int64_t single;  ///< of a projection: one B, eight tokens before another
  int token, channel;
  int stride;  ///< Elements between rows of the activation.
  int place;   ///< In Rows.

  __device__ Source(const Extents& x, int b, int tile, int first_channel, int stride) : stride(stride) {
    const int thread = threadIdx.x, t = thread / kRow, quarter = thread / 4;
    token = tile * kTile, channel = first_channel + thread % kRow * kEach;
    const int c = thread % kRow * kEach;
    place = kept<T>(Rows<T>::place(c / kWarpChannels, t) + c % kWarpChannels);
    row = x.sequence(b, stride) + static_cast<std::int64_t>(token + t) * stride + channel;
    column = x.column_rows(b) + static_cast<std::int64_t>(token + quarter % kTile) * x.columns + x.columns - 2 * x.states +
             quarter / kTile * x.states + thread % 4 * 4;
    single = x.column_rows(b) + static_cast<std::int64_t>(token + thread / kStates) * x.columns + x.columns - 2 * x.states +
             thread % kStates;
  }
  __device__ void next(const Extents& x) {
    token += kTile;
    const std::int64_t columns = static_cast<std::int64_t>(kTile) * x.columns;
    row += static_cast<std::int64_t>(kTile) * stride, column += columns, single += columns;
  }
};

/// Fills rows, zeros outside.
template <Fit kFit, class T>
__device__ void fetch_rows(Rows<T>& to, const T* from, const Extents& x, const Source<T>& at) {
  constexpr int kEach = Source<T>::kEach, kRow = Source<T>::kRow, kStep = kThreads / kRow;
  const int c = threadIdx.x % kRow * kEach;
#pragma unroll
  for (int first = 0; first < kTile; first += kStep) {
    const int t = first + static_cast<int>(threadIdx.x) / kRow;
    const T* row = from + (at.row + static_cast<std::int64_t>(first) * at.stride);
    // As in `kept`.
    T* const place = std::is_same_v<T, float> ? to.row(c / kWarpChannels, t) + c % kWarpChannels
                                              : to.at[0][0] + at.place + Rows<T>::place(0, first);
    const bool inside = at.token + t < x.tokens;
    if constexpr (kFit != Fit::any) {
      copy16_async(place, row, kFit == Fit::whole || (inside && at.channel < x.channels));
    } else {
#pragma unroll
      for (int k = 0; k < kEach; ++k) place[k] = inside && at.channel + k < x.channels ? row[k] : from_float<T>(0.0f);
    }
  }
}

/// B of a tile, and C behind it when kBoth; zeros outside.
template <Fit kFit, bool kBoth, class T>
__device__ void fetch_columns(float (*to)[kStates], const float* from, const Extents& x, int b, const Source<T>& at) {
  if constexpr (kFit != Fit::any) {
    const int quarter = threadIdx.x / 4;
    if (!kBoth && quarter >= kTile) return;
    const bool inside = kFit == Fit::whole || at.token + quarter % kTile < x.tokens;
    copy16_async(to[0] + 4 * threadIdx.x, from + at.column, inside);
  } else {
    const int column = x.columns - 2 * x.states;
    copy_columns<kTile>(to[0], from + x.column_rows(b), x, at.token, column, x.states);
    if (kBoth) copy_columns<kTile>(to[kTile], from + x.column_rows(b), x, at.token, column + x.states, x.states);
  }
}

/// C alone, as it is.
template <Fit kFit, class T>
__device__ void fetch_readout(float (*to)[kStates], const float* from, const Extents& x, int b, const Source<T>& at) {
  if constexpr (kFit != Fit::any) {
    const int quarter = static_cast<int>(threadIdx.x) / 4 - kTile;
    const bool inside = kFit == Fit::whole || at.token + quarter < x.tokens;
    if (quarter >= 0) copy16_async(to[quarter] + 4 * (threadIdx.x % 4), from + at.column, inside);
  } else {
    copy_columns<kTile>(to[0], from + x.column_rows(b), x, at.token, x.columns - x.states, x.states);
  }
}

}  // namespace dm::cuda::scan::forward
