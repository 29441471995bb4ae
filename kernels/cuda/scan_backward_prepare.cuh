// What is elementwise before the steps of a tile of the selective scan backward.
#pragma once

#include "kernels/cuda/scan_backward_shared.cuh"

namespace dm::cuda::scan::backward {

/// Two neighbours of a row as they are in memory.
template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T at[2] = {};

  __device__ void load(const RawRows<T>& rows, int token, const Lane& lane) {
    *this = reinterpret_cast<const Pair&>(rows[token][lane.channel()]);
  }
};

/// What a lane reads of a tile's rows.
template <class T>
struct Inputs {
  Pair<T> pair[4][2];

  __device__ Inputs(const RawRows<T> (&rows)[4], const Lane& lane) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int i = 0; i < 2; ++i) pair[k][i].load(rows[k], 2 * lane.quad + i, lane);
    }
  }
  __device__ void get(int tensor, int i, float (&x)[2]) const {
    load2(pair[tensor][i].at, x);
  }
};

/// This lane's elements of a tile, before its steps.
template <class T>
__device__ void prepare(typename MainShared<T>::Warp& to, const Inputs<T>& inputs, const float4& vectors, const Lane& lane) {
  const float bias[2] = {vectors.z, vectors.w};
  Elements delta, input, dy, slope, dz_factor, gating;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float u[2], dt[2], z[2], dout[2];
    inputs.get(0, i, u), inputs.get(1, i, dt), inputs.get(2, i, z), inputs.get(3, i, dout);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float x = dt[c] + bias[c], gate = sigmoid(z[c]), e = exp2_fast(-kLog2e * fabsf(x)), above = 1.0f + e;
      const float upper = reciprocal(above);
      delta[i][c] = backward_softplus<T>(x, e, above), slope[i][c] = x >= 0.0f ? upper : e * upper;
      input[i][c] = delta[i][c] * u[c];
      gating[i][c] = z[c] * gate;
      dy[i][c] = dout[c] * gating[i][c];
      dz_factor[i][c] = dy[i][c] + gate * (dout[c] - dy[i][c]);
    }
  }
  to.delta.store(lane, delta);
  to.input.store(lane, input);
  to.dy.store(lane, dy);
  to.input_weights.store(lane, input);
  to.dy_weights.store(lane, dy);
  const int at = threadIdx.x % 32;
  to.slope[at] = vector_of(slope), to.dz_factor[at] = vector_of(dz_factor);
  to.gating[at] = vector_of(gating), to.dy_kept[at] = vector_of(dy);
}
template <class T>
__device__ void prepare_reader(typename MainShared<T>::Reader& reader, int tile, const Lane& lane) {
  Elements q;
#pragma unroll
  for (int i = 0; i < 2; ++i) load2(&reader.rows[tile & 1][2 * lane.quad + i][lane.channel()], q[i]);
  store_terms(reader.q[lane.warp], lane, q);
}

}  // namespace dm::cuda::scan::backward
