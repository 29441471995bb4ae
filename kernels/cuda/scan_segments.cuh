// Time cut into segments that run in parallel: what enters each of them, from what each makes of zero.
//
// A recurrence from zero over a segment ends at e; from a state s it ends at exp(A ΣΔ) s + e, with ΣΔ over the segment. So
// one pass finds e and ΣΔ of every segment, a short one the state that enters each, and a last one does the work. The
// adjoint recurrence is the same from the last segment to the first. The first pass costs about half of a forward, so
// segments pay only where whole sequences leave multiprocessors idle (segments_of in scan_layout.h).
#pragma once

#include "kernels/cuda/scan_common.cuh"

namespace dm::cuda::scan {

/// Ends of segments or what enters them, [B, count, slices, D, 16], and ΣΔ, [B, count, D].
struct Segments {
  float* states;
  float* sums;
  int count;
  int each = 1;  ///< Pieces: so many to a segment, fewer to the last one.

  __device__ std::int64_t state_row(const Extents& x, int b, int segment, int slice, int channel) const {
    return (((static_cast<std::int64_t>(b) * count + segment) * x.slices + slice) * x.channels + channel) * kStates;
  }
  __device__ std::int64_t sum_at(const Extents& x, int b, int segment, int channel) const {
    return (static_cast<std::int64_t>(b) * count + segment) * x.channels + channel;
  }
};

/// One thread a state: walks the pieces in time's order from `initial` (null is zero), or against it from zero, and leaves
/// what enters each segment; `segments` may be `pieces`. The end of the last one on the way is not needed and may be
/// anything, with all others of its segment.
template <class T>
__global__ void __launch_bounds__(256) enter_segments(Extents x, Recurrence<T> recurrence, Segments pieces,
                                                      Segments segments, const float* initial, bool against_time) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int n = static_cast<int>(index % kStates), b = blockIdx.y / x.slices, slice = blockIdx.y % x.slices;
  if (index / kStates >= x.channels) return;
  const int channel = static_cast<int>(index / kStates), state_index = slice * kStates + n;
  const float rate = rate_of(recurrence, x, channel, state_index);
  float state = 0.0f;
  if (initial && state_index < x.states) {
    state = initial[(static_cast<std::int64_t>(b) * x.channels + channel) * x.states + state_index];
  }
  const int first = against_time ? pieces.each - 1 : 0;
#pragma unroll 8
  for (int i = 0; i < pieces.count; ++i) {
    const int piece = against_time ? pieces.count - 1 - i : i;
    const float end = pieces.states[pieces.state_row(x, b, piece, slice, channel) + n];
    const float sum = pieces.sums[pieces.sum_at(x, b, piece, channel)];
    if (i == 0 || piece % pieces.each == first) {
      segments.states[segments.state_row(x, b, piece / pieces.each, slice, channel) + n] = state;
    }
    state = exp2_fast(sum * rate) * state + end;
  }
}

template <class T>
void run_enter_segments(const NativeStream& native, const Extents& x, const Recurrence<T>& recurrence,
                        const Segments& pieces, const Segments& segments, const float* initial, bool against_time) {
  const dim3 grid(static_cast<unsigned>(scan::pieces(std::int64_t{x.channels} * kStates, 256)),
                  static_cast<unsigned>(x.batch * x.slices));
  enter_segments<T><<<grid, 256, 0, native.stream>>>(x, recurrence, pieces, segments, initial, against_time);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace dm::cuda::scan
