// The selective scan backward on the GPU: a block walks 64 channels of one sequence from the last token to the first.
//
// A thread owns two channels and four states of each; lanes share them as scan_lanes.cuh says. Tiles of eight steps:
// elementwise part to shared memory; forward again from the tile's saved state with decays and states in registers; then the
// adjoint recurrence from the tile's end. One barrier a tile: between two of them a tile is swept while the next one but one
// is prepared, the last one finished, and others arrive by asynchronous copies. A state-step costs 12 FP32, one ex2 and 2.75
// floats from shared memory; sums over states cost half a shuffle, sums over channels an eighth of a tensor core's product.
//
// Partial sums over a block's 64 channels (B̄, C̄) and over time (Ā, D̄, dt_bias) go to scratch; reduce kernels add them in a
// fixed order. More than 16 states: a launch for each slice of 16, with the sums over states of the slices before in planes
// of scratch. Before all this: scan_reader.cuh where there are sources, scan_adjoint.cuh where time is cut into segments.
#include "kernels/cuda/scan_adjoint.cuh"
#include "kernels/cuda/scan_reader.cuh"

namespace dm::cuda {
namespace scan::backward {
namespace {

/// Sums over channels that one product leaves apart: those of lanes that differ in bit 4, and those of warps.
inline constexpr int kMainParts = kThreads / 16;
/// Rows of sums that two halves of a warp write at once: half of the banks apart.
inline constexpr int kSumRow = kChannels + 16;

/// A ring of three tiles: what a thread prepares of its elements stays until the sums over states have arrived.
template <class T>
struct alignas(16) MainShared {
  struct Rows {
    T tensor[4][kTile][kChannels];  // u, dt, z, dout
  } rows[2];
  struct Stage {
    float B[kTile][kStates], C[kTile][kStates];
    T states[kChannels][kStates];
  } stage[2];
  T gated_readout[2][kTile][kChannels];
  struct Plane {
    float delta[kTile][kChannels], input[kTile][kChannels];  // Δ, Δu
    float dy[kTile][kChannels];
    float slope[kTile][kChannels];      // softplus'
    float dz_factor[kTile][kChannels];  // dout ⊙ silu'(z)
    float gating[kTile][kChannels];     // silu(z)
    T u[kTile][kChannels];
  } plane[3];
  struct Sums {
    float readout[kTile][kSumRow], input[kTile][kSumRow], exponent[kTile][kSumRow];  // Σ_n C h, λ B, λ exp(ΔA) h A log2(e)
    float columns[kTile][kMainParts * 2 * kStates + 16];                             // half of the banks apart
  } sums[2];
  float bias[kChannels], skip[kChannels];
  struct alignas(16) ReaderStage {
    T q[kTile][kChannels];
    float C[kTile][kStates];
  };
  /// Two of each reader follow.
  __device__ ReaderStage& reader(int k, int tile) { return reinterpret_cast<ReaderStage*>(this + 1)[2 * k + (tile & 1)]; }
  static std::size_t bytes(int readers) { return sizeof(MainShared) + sizeof(ReaderStage) * 2 * readers; }
};

/// kReaders is their number, or -1 for any.
template <class T, int kReaders>
__global__ void __launch_bounds__(kThreads, 2) main_kernel(const __grid_constant__ MainParams<T> p) {
  using Shared = MainShared<T>;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  Shared& s = *reinterpret_cast<Shared*>(shared_bytes);
  const Extents& x = p.x;
  const int readers = kReaders >= 0 ? kReaders : p.readers;
  const int b = blockIdx.y, segment = blockIdx.z, first_channel = blockIdx.x * kChannels;
  // In register c of a thread the channel local[c], swapped in lanes with bit 2 so that each keeps the first one's sums.
  const Lane lane;
  const int part = threadIdx.x / 16, swap = lane.upper4() ? 1 : 0;
  const int local[2] = {(part * 4 + lane.lane % 4) * 2 + swap, (part * 4 + lane.lane % 4) * 2 + 1 - swap};
  // Elementwise work: four channels of one token.
  const int row = threadIdx.x / 16, quad = threadIdx.x % 16 * 4;

  float rate[2][4], carry[2][4], drate[2][4] = {}, dskip[4] = {}, dbias[4] = {};
#pragma unroll
  for (int c = 0; c < 2; ++c) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int channel = first_channel + local[c];
      rate[c][j] = rate_of(p.own, x, channel, p.slice * kStates + lane.first_state + j);
      carry[c][j] = 0.0f;
      if (p.segments.count > 1 && channel < x.channels) {
        carry[c][j] = p.segments.states[p.segments.state_row(x, b, segment, p.slice, channel) + lane.first_state + j];
      }
    }
  }
  if (threadIdx.x < kChannels) {
    const int c = first_channel + static_cast<int>(threadIdx.x);
    s.bias[threadIdx.x] = c < x.channels ? p.own.dt_bias[c] : 0.0f;
    s.skip[threadIdx.x] = c < x.channels ? p.skip[c] : 0.0f;
  }

  const int tiles = (x.tokens + kTile - 1) / kTile, begin = segment * p.tiles_a_segment;
  const int end = min(begin + p.tiles_a_segment, tiles), count = x.states - p.slice * kStates;
  const RowCopy<T> row_copy(x, b, first_channel);
  const StateCopy<T, kThreads> state_copy(x, b, first_channel);
  const ColumnCopy column_copy(x, b);
  const auto fetch_rows = [&](int tile) {
    T* to = s.rows[tile & 1].tensor[0][0];
    if (x.vector) {
#pragma unroll
      for (int first = 0; first < 4 * RowCopy<T>::kCopies; first += kThreads) {
        const int i = first + static_cast<int>(threadIdx.x);
        const int tensor = i / RowCopy<T>::kCopies;
        row_copy.run(to + i * RowCopy<T>::kEach, p.rows[tensor], tensor == 2 ? x.z_stride : x.channels, tile);
      }
    } else {
      for (int i = 0; i < 4; ++i) {
        copy_rows<kTile>(to + i * kTile * kChannels, p.rows[i], i == 2 ? x.z_stride : x.channels, x, b, tile * kTile,
                         first_channel);
      }
    }
  };
  const auto fetch_row = [&](T* to, const T* from, int tile) {
    if (x.vector) {
      if (threadIdx.x < RowCopy<T>::kCopies) row_copy.run(to + threadIdx.x * RowCopy<T>::kEach, from, x.channels, tile);
    } else {
      copy_rows<kTile>(to, from, x.channels, x, b, tile * kTile, first_channel);
    }
  };
  const auto fetch_stage = [&](int tile) {
    typename Shared::Stage& stage = s.stage[tile & 1];
    const int first_column = x.columns - 2 * x.states + p.slice * kStates;
    state_copy.run(stage.states[0], p.own.states, tile, p.slice);
    if (threadIdx.x >= 64) {
      const bool is_C = threadIdx.x >= 96;
      column_copy.run(is_C ? stage.C[0] : stage.B[0], p.own.dbc + first_column + (is_C ? x.states : 0), tile, count);
    }
    for (int k = 0; k < readers; ++k) {
      typename Shared::ReaderStage& reader = s.reader(k, tile);
      fetch_row(reader.q[0], p.reader[k].q, tile);
      if (threadIdx.x / 32 == 2 + k % 2) {
        column_copy.run(reader.C[0], p.reader[k].dbc + first_column + x.states, tile, count);
      }
    }
  };

  const auto prepare = [&](int tile, typename Shared::Plane& plane) {
    const auto& tensor = s.rows[tile & 1].tensor;
    const bool inside = tile * kTile + row < x.tokens;
    float u[4], dt[4], z[4], dout[4], bias[4], dy[4], slope[4], dz_factor[4], gating[4];
    load4(&tensor[0][row][quad], u);
    load4(&tensor[1][row][quad], dt);
    load4(&tensor[2][row][quad], z);
    load4(&tensor[3][row][quad], dout);
    load4(&s.bias[quad], bias);
    store4(&plane.u[row][quad], u);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Softplus softplus(dt[i] + bias[i]);
      const float delta = inside ? softplus.value : 0.0f, gate = sigmoid(z[i]);
      slope[i] = softplus.slope;
      dt[i] = delta;
      u[i] *= delta;
      gating[i] = z[i] * gate;
      dy[i] = dout[i] * gating[i];
      dz_factor[i] = dout[i] * (gate + gating[i] * (1.0f - gate));
    }
    store4(&plane.delta[row][quad], dt);
    store4(&plane.input[row][quad], u);
    store4(&plane.dy[row][quad], dy);
    store4(&plane.slope[row][quad], slope);
    store4(&plane.dz_factor[row][quad], dz_factor);
    if (p.out) store4(&plane.gating[row][quad], gating);
  };

  // Everything elementwise that needs the tile's sums over states, and the block's part of B̄ and C̄.
  const auto finish = [&](int tile, const typename Shared::Plane& plane) {
    const typename Shared::Sums& sums = s.sums[tile & 1];
    const int token = tile * kTile + row, channel = first_channel + quad;
    if (token >= x.tokens) return;
    const int column = quad / 2;
    float2 total = {};
#pragma unroll
    for (int part = 0; part < kMainParts; ++part) {
      const float2 add = *reinterpret_cast<const float2*>(&sums.columns[row][part * 2 * kStates + column]);
      total.x += add.x, total.y += add.y;
    }
    const std::int64_t first_row = (static_cast<std::int64_t>(blockIdx.x) * x.batch + b) * x.tokens + tile * kTile;
    float* columns = p.columns + (first_row * x.slices + p.slice) * (2 * kStates);
    *reinterpret_cast<float2*>(columns + (row * x.slices * 2 * kStates + column)) = total;

    float readout[4], dinput[4], dexponent[4];
    load4(&sums.readout[row][quad], readout);
    load4(&sums.input[row][quad], dinput);
    load4(&sums.exponent[row][quad], dexponent);
    const std::int64_t at =
        x.sequence(b) + static_cast<std::int64_t>(tile) * (kTile * x.channels) + (row * x.channels + channel);
    if (x.slices > 1) {
      const std::int64_t all = x.sequence(x.batch);
      float* planes = p.planes + at;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (channel + i >= x.channels) continue;
        if (p.slice > 0) {
          readout[i] += planes[i], dinput[i] += planes[all + i], dexponent[i] += planes[2 * all + i];
        }
        if (p.slice < x.slices - 1) {
          planes[i] = readout[i], planes[all + i] = dinput[i], planes[2 * all + i] = dexponent[i];
        }
      }
      if (p.slice < x.slices - 1) return;
    }
    float u[4], delta[4], dy[4], slope[4], dz_factor[4], gating[4] = {}, skip[4], gated[4] = {}, du[4];
    load4(&plane.u[row][quad], u);
    load4(&plane.delta[row][quad], delta);
    load4(&plane.dy[row][quad], dy);
    load4(&plane.slope[row][quad], slope);
    load4(&plane.dz_factor[row][quad], dz_factor);
    load4(&s.skip[quad], skip);
    if (p.out) load4(&plane.gating[row][quad], gating);
    if (p.gated_readout) load4(&s.gated_readout[tile & 1][row][quad], gated);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float ddt = (dexponent[i] * kLn2 + u[i] * dinput[i]) * slope[i];
      dbias[i] += ddt;
      dskip[i] += dy[i] * u[i];
      du[i] = skip[i] * dy[i] + delta[i] * dinput[i];
      const float y = readout[i] + gated[i] + skip[i] * u[i];
      dz_factor[i] *= y, gating[i] *= y;
      slope[i] = ddt;
    }
    const std::int64_t at_dz = x.sequence(b, x.dz_stride) + static_cast<std::int64_t>(token) * x.dz_stride + channel;
    if (!x.vector) {
      store_row(p.du + at - channel, channel, x, du);
      store_row(p.ddt + at - channel, channel, x, slope);
      store_row(p.dz + at_dz - channel, channel, x, dz_factor);
      if (p.out) store_row(p.out + at - channel, channel, x, gating);
    } else if (channel < x.channels) {
      store4(p.du + at, du);
      store4(p.ddt + at, slope);
      store4(p.dz + at_dz, dz_factor);
      if (p.out) store4(p.out + at, gating);
    }
  };

  const typename ChannelSums<T>::Indicator odd_steps(1), even_steps(0);
  const auto sweep = [&](int tile, const typename Shared::Plane& plane) {
    const typename Shared::Stage& stage = s.stage[tile & 1];
    typename Shared::Sums& sums = s.sums[tile & 1];
    float decay[kTile][2][4], h[kTile + 1][2][4];
#pragma unroll
    for (int c = 0; c < 2; ++c) load4(&stage.states[local[c]][lane.first_state], h[0][c]);
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      float B[4];
      load4(&stage.B[t][lane.first_state], B);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float delta = plane.delta[t][local[c]], input = plane.input[t][local[c]];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          decay[t][c][j] = exp2_fast(delta * rate[c][j]);
          h[t + 1][c][j] = decay[t][c][j] * h[t][c][j] + input * B[j];
        }
      }
    }
    float later[3];  // an odd step's sums, until the even one's before it
    ChannelSums<T> columns;
#pragma unroll
    for (int t = kTile - 1; t >= 0; --t) {
      float B[4], C[4], lambda[2][4];
      load4(&stage.B[t][lane.first_state], B);
      load4(&stage.C[t][lane.first_state], C);
      const float dy[2] = {plane.dy[t][local[0]], plane.dy[t][local[1]]};
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int j = 0; j < 4; ++j) lambda[c][j] = carry[c][j] + dy[c] * C[j];
      }
#pragma unroll(kReaders > 0 ? kReaders : 1)
      for (int k = 0; k < readers; ++k) {
        const typename Shared::ReaderStage& reader = s.reader(k, tile);
        float reader_C[4];
        load4(&reader.C[t][lane.first_state], reader_C);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float q = to_float(reader.q[t][local[c]]);
#pragma unroll
          for (int j = 0; j < 4; ++j) lambda[c][j] += q * reader_C[j];
        }
      }
      float dB[4] = {}, dC[4] = {}, readout[2] = {}, dinput[2] = {}, dexponent[2] = {};
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float delta = plane.delta[t][local[c]], input = plane.input[t][local[c]];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          readout[c] += C[j] * h[t + 1][c][j];
          dinput[c] += lambda[c][j] * B[j];
          dB[j] += input * lambda[c][j];
          dC[j] += dy[c] * h[t + 1][c][j];
          carry[c][j] = decay[t][c][j] * lambda[c][j];
          const float slope = carry[c][j] * h[t][c][j];
          drate[c][j] += slope * delta;
          dexponent[c] += slope * rate[c][j];
        }
      }
      const float halves[3] = {readout[0] + exchange(readout[1], 4), dinput[0] + exchange(dinput[1], 4),
                               dexponent[0] + exchange(dexponent[1], 4)};
      columns.add(dB, dC, t % 2 ? odd_steps : even_steps);
      if (t % 2) {
#pragma unroll
        for (int i = 0; i < 3; ++i) later[i] = halves[i];
        continue;
      }
      float(*to[3])[kSumRow] = {sums.readout, sums.input, sums.exponent};
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        to[i][t + lane.upper8()][local[0]] = scatter_sum(halves[i], later[i], lane.upper8(), 8);
      }
      float* row = &sums.columns[t + columns.call()][part * 2 * kStates + lane.first_state + columns.column()];
      *reinterpret_cast<float2*>(row) = make_float2(columns.sum[0], columns.sum[1]);
      *reinterpret_cast<float2*>(row + kStates) = make_float2(columns.sum[2], columns.sum[3]);
      columns = {};
    }
  };

  // What is fetched before one barrier is prepared before the next one, swept before the third from there, and finished
  // after that.
  fetch_rows(end - 1);
  int slot = 2;
  for (int tile = end + 1; tile >= begin - 1; --tile) {
    slot = slot == 0 ? 2 : slot - 1;
    typename Shared::Plane& after = s.plane[slot == 2 ? 0 : slot + 1];  // of the tile after it, then of the second before it
    wait_for_copies();
    __syncthreads();
    if (tile - 3 >= begin) fetch_rows(tile - 3);
    if (tile - 1 >= begin && tile - 1 < end) fetch_stage(tile - 1);
    if (p.gated_readout && tile >= begin && tile < end) fetch_row(s.gated_readout[tile & 1][0], p.gated_readout, tile);
    if (tile + 1 < end) finish(tile + 1, after);
    if (tile - 2 >= begin) prepare(tile - 2, after);
    if (tile < begin || tile >= end) continue;
    sweep(tile, s.plane[slot]);
  }

  const std::int64_t walk = static_cast<std::int64_t>(b) * p.segments.count + segment;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int channel = first_channel + local[c];
    if (channel >= x.channels) continue;
    store4(p.rates + ((walk * x.slices + p.slice) * x.channels + channel) * kStates + lane.first_state, drate[c]);
  }
  if (p.slice < x.slices - 1) return;
  float(*parts)[kTile][kChannels] = &s.plane[0].delta;  // and input
  __syncthreads();
  store4(&parts[0][row][quad], dskip);
  store4(&parts[1][row][quad], dbias);
  __syncthreads();
  const int element = threadIdx.x % kChannels, channel = first_channel + element;
  if (channel >= x.channels) return;
  float sum = 0.0f;
#pragma unroll
  for (int t = 0; t < kTile; ++t) sum += parts[threadIdx.x / kChannels][t][element];
  p.vectors[(walk * 2 + threadIdx.x / kChannels) * x.channels + channel] = sum;
}

/// ddbc's B and C columns: a thread sums one of them over the blocks of channels, in their order.
__global__ void __launch_bounds__(256)
    reduce_columns(Extents x, int blocks, const float* columns, const float* source_columns, float* ddbc) {
  const std::int64_t rows = static_cast<std::int64_t>(x.batch) * x.tokens;
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t width = static_cast<std::int64_t>(x.slices) * 2 * kStates;
  const std::int64_t token = index / width;
  const int column = static_cast<int>(index % width), slice = column / (2 * kStates), kind = column / kStates % 2;
  const int n = slice * kStates + column % kStates;
  if (token >= rows || n >= x.states) return;
  float sum = 0.0f;
#pragma unroll 8
  for (int block = 0; block < blocks; ++block) sum += columns[block * rows * width + index];
  if (kind == 1 && source_columns) {
    const std::int64_t at = (token * x.slices + slice) * kStates + column % kStates;
#pragma unroll 8
    for (int block = 0; block < blocks; ++block) sum += source_columns[block * rows * (width / 2) + at];
  }
  ddbc[token * x.columns + x.columns - 2 * x.states + kind * x.states + n] = sum;
}

/// dA_log, dskip and ddt_bias: a thread sums one element over the walks (sequence, segment) in their order.
__global__ void __launch_bounds__(256) reduce_parameters(Extents x, int walks, const float* rates, const float* vectors,
                                                         const float* A_log, float* dA_log, float* dskip, float* ddt_bias) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t elements = static_cast<std::int64_t>(x.channels) * x.states;
  if (index < elements) {
    const std::int64_t channel = index / x.states;
    const int n = static_cast<int>(index % x.states), slice = n / kStates;
    float sum = 0.0f;
    for (std::int64_t walk = 0; walk < walks; ++walk) {
      sum += rates[((walk * x.slices + slice) * x.channels + channel) * kStates + n % kStates];
    }
    dA_log[index] -= expf(A_log[index]) * sum;
  } else if (index < elements + 2 * x.channels) {
    const std::int64_t at = index - elements;
    float sum = 0.0f;
    for (std::int64_t walk = 0; walk < walks; ++walk) sum += vectors[walk * 2 * x.channels + at];
    float* to = at < x.channels ? dskip + at : ddt_bias + (at - x.channels);
    *to += sum;
  }
}

template <class T>
void run_main(const NativeStream& native, const MainParams<T>& p) {
  const dim3 grid(static_cast<unsigned>(blocks_of(p.x.channels)), static_cast<unsigned>(p.x.batch),
                  static_cast<unsigned>(p.segments.count));
  const std::size_t shared = MainShared<T>::bytes(p.readers);
  require(shared <= kMaxShared, "the selective scan's backward on a GPU has no shared memory for so many readers");
  const auto kernel = p.readers == 0   ? main_kernel<T, 0>
                      : p.readers == 1 ? main_kernel<T, 1>
                      : p.readers == 2 ? main_kernel<T, 2>
                                       : main_kernel<T, -1>;
  launch(kernel, grid, shared, native, p);
}

/// The extents, with rows that may be copied 16 bytes at a time when every activation of the call allows it.
Extents call_extents(const ScanBackwardArgs& args) {
  Extents x = extents_of(args.own);
  for (const Tensor& tensor :
       {args.own.u, args.own.dt, args.gate, args.dout, args.du, args.ddt, args.dgate, args.q, args.out}) {
    require_alignment(x, tensor);
  }
  require_alignment(x, args.z);
  require_alignment(x, args.dz);
  x.z_stride = static_cast<int>(args.z.row_stride), x.dz_stride = static_cast<int>(args.dz.row_stride);
  for (const ScanRecurrence& source : args.sources) {
    require_alignment(x, source.u);
    require_alignment(x, source.dt);
    require_column_alignment(x, source.dbc);
  }
  for (const ScanReader& reader : args.readers) {
    require_alignment(x, reader.q);
    require_column_alignment(x, reader.dbc);
  }
  require_column_alignment(x, args.own.dbc);
  return x;
}

template <class T>
void run(const NativeStream& native, const ScanBackwardArgs& args) {
  const Extents x = call_extents(args);
  const bool dense = !args.sources.empty();
  const BackwardScratch layout(x.batch, x.tokens, x.channels, x.states, dense);
  float* scratch = args.scratch.as<float>();
  if (dense) run_reader<T>(native, args, x, scratch + layout.source_columns);

  MainParams<T> p{};
  p.x = x;
  p.own = view<T>(args.own);
  p.readers = static_cast<int>(args.readers.size());
  for (int k = 0; k < p.readers; ++k) {
    const ScanReader& reader = args.readers[static_cast<std::size_t>(k)];
    p.reader[k] = {pointer<const T>(reader.q), reader.dbc.as<float>()};
  }
  p.skip = args.skip.as<float>();
  p.rows[0] = p.own.u, p.rows[1] = p.own.dt, p.rows[2] = pointer<const T>(args.z), p.rows[3] = pointer<const T>(args.dout);
  p.gated_readout = dense ? pointer<const T>(args.du) : nullptr;
  p.du = pointer<T>(args.du), p.ddt = pointer<T>(args.ddt), p.dz = pointer<T>(args.dz);
  p.out = args.out ? pointer<T>(args.out) : nullptr;
  p.columns = scratch + layout.columns, p.rates = scratch + layout.rates, p.vectors = scratch + layout.vectors;
  p.planes = scratch + layout.planes;
  const std::int64_t tiles = pieces(x.tokens, kTile);
  const std::int64_t segments = segments_of(x.batch, x.tokens, x.channels), each = segments > 1 ? kPieces : 1;
  p.tiles_a_piece = static_cast<int>(pieces(tiles, segments * each));
  p.tiles_a_segment = p.tiles_a_piece * static_cast<int>(each);
  p.segments = {scratch + layout.carries, nullptr, static_cast<int>(pieces(tiles, p.tiles_a_segment))};
  p.pieces = {scratch + layout.ends, scratch + layout.sums, static_cast<int>(pieces(tiles, p.tiles_a_piece)),
              static_cast<int>(each)};
  if (p.segments.count > 1) run_segments(native, p);
  for (p.slice = 0; p.slice < x.slices; ++p.slice) run_main(native, p);

  const std::int64_t columns = static_cast<std::int64_t>(x.batch) * x.tokens * x.slices * 2 * kStates;
  reduce_columns<<<ceil_div(columns, 256), 256, 0, native.stream>>>(x, static_cast<int>(blocks_of(x.channels)), p.columns,
                                                                    dense ? scratch + layout.source_columns : nullptr,
                                                                    args.ddbc.as<float>());
  CUDA_CHECK(cudaGetLastError());
  const std::int64_t parameters = static_cast<std::int64_t>(x.channels) * (x.states + 2);
  reduce_parameters<<<ceil_div(parameters, 256), 256, 0, native.stream>>>(
      x, x.batch * p.segments.count, p.rates, p.vectors, args.own.A_log.as<float>(), args.dA_log.as<float>(),
      args.dskip.as<float>(), args.ddt_bias.as<float>());
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace
}  // namespace scan::backward

void selective_scan_backward(Stream& stream, const ScanBackwardArgs& args) {
  if (args.du.numel() == 0) return;
  with_compute_type(args.du.dtype(), [&](auto element) { scan::backward::run<decltype(element)>(native(stream), args); });
}

}  // namespace dm::cuda
