// The selective scan backward on the GPU: a block walks 64 channels of one sequence from the last token to the first.
//
// Lanes share channels and states as scan_lanes.cuh says. Tiles of eight steps: elementwise part to shared memory; forward
// again from the tile's saved state with decays and states in registers; then the adjoint recurrence from the tile's end.
// Raw inputs, saved states, B and C arrive one tile ahead by asynchronous copies. A state-step costs 12 FP32, one ex2, 3.25
// floats from shared memory and, for sums over lanes, 1.5 shuffles with 3 more instructions.
//
// Partial sums over a block's 64 channels (B̄, C̄) and over time (Ā, D̄, dt_bias) go to scratch; reduce kernels add them in a
// fixed order. More than 16 states: a launch for each slice of 16, with the sums over states of the slices before in planes
// of scratch. Before all this: scan_reader.cuh where there are sources, scan_adjoint.cuh where time is cut into segments.
#include "kernels/cuda/scan_adjoint.cuh"
#include "kernels/cuda/scan_reader.cuh"

namespace dm::cuda {
namespace scan::backward {
namespace {

template <class T>
struct alignas(16) MainShared {
  struct Stage {
    T u[kTile][kChannels], dt[kTile][kChannels], z[kTile][kChannels], dout[kTile][kChannels];
    T gated_readout[kTile][kChannels];
    T states[kChannels][kStates];
    Orders BC[kTile][2];
  } stage[2];
  float2 drive[kTile][kChannels];  // Δ, Δu
  float dy[kTile][kChannels];
  float slope[kTile][kChannels];      // softplus'
  float dz_factor[kTile][kChannels];  // dout ⊙ silu'(z)
  float gating[kTile][kChannels];     // silu(z)
  float readout[kTile][kSumRow];
  float sums[kTile][2][kSumRow];  // Σ_n λ B, Σ_n λ exp(ΔA) h A log2(e)
  float columns[kTile][kWarps][2 * kStates];
  float dskip[kTile][kChannels], dbias[kTile][kChannels];  // of one thread each, over all tiles
  float bias[kChannels], skip[kChannels];
  struct alignas(16) ReaderStage {
    T q[kTile][kChannels];
    Orders C[kTile];
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
  const Lane lane;
  // Elementwise work: four channels of one token.
  const int row = threadIdx.x / 16, quad = threadIdx.x % 16 * 4;

  float rate[2][4], carry[2][4], drate[2][4] = {};
#pragma unroll
  for (int c = 0; c < 2; ++c) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int channel = first_channel + lane.local[c];
      rate[c][j] = rate_of(p.own, x, channel, p.slice * kStates + lane.state(j));
      carry[c][j] = 0.0f;
      if (p.segments.count > 1 && channel < x.channels) {
        carry[c][j] = p.segments.states[p.segments.state_row(x, b, segment, p.slice, channel) + lane.state(j)];
      }
    }
  }
  const float zeros[4] = {};
  store4(&s.dskip[row][quad], zeros);
  store4(&s.dbias[row][quad], zeros);
  if (threadIdx.x < kChannels) {
    const int c = first_channel + static_cast<int>(threadIdx.x);
    s.bias[threadIdx.x] = c < x.channels ? p.own.dt_bias[c] : 0.0f;
    s.skip[threadIdx.x] = c < x.channels ? p.skip[c] : 0.0f;
  }

  const auto fetch = [&](int tile) {
    typename Shared::Stage& stage = s.stage[tile & 1];
    const int token = tile * kTile, count = x.states - p.slice * kStates;
    const int first_column = x.columns - 2 * x.states + p.slice * kStates;
    const std::int64_t sequence = x.sequence(b);
    copy_rows<kTile>(stage.u[0], p.own.u + sequence, x, token, first_channel);
    copy_rows<kTile>(stage.dt[0], p.own.dt + sequence, x, token, first_channel);
    copy_rows<kTile>(stage.z[0], p.z + sequence, x, token, first_channel);
    copy_rows<kTile>(stage.dout[0], p.dout + sequence, x, token, first_channel);
    if (p.gated_readout) copy_rows<kTile>(stage.gated_readout[0], p.gated_readout + sequence, x, token, first_channel);
    copy_states(stage.states[0], p.own.states + x.saved_states(b, tile, p.slice), x, first_channel);
    const int kind = threadIdx.x / 64;  // B, C
    copy_orders(stage.BC[0][kind][0], 2 * kOrders * kStates, p.own.dbc + x.column_rows(b), x, token,
                first_column + kind * x.states, count, threadIdx.x % 64);
    for (int k = 0; k < readers; ++k) {
      typename Shared::ReaderStage& reader = s.reader(k, tile);
      copy_rows<kTile>(reader.q[0], p.reader[k].q + sequence, x, token, first_channel);
      if (threadIdx.x < kOrders * kStates) {
        copy_orders(reader.C[0][0], kOrders * kStates, p.reader[k].dbc + x.column_rows(b), x, token, first_column + x.states,
                    count, threadIdx.x);
      }
    }
  };

  const auto prepare = [&](int tile) {
    const typename Shared::Stage& stage = s.stage[tile & 1];
    const bool inside = tile * kTile + row < x.tokens;
    float u[4], dt[4], z[4], dout[4], bias[4], dy[4], slope[4], dz_factor[4], gating[4];
    load4(&stage.u[row][quad], u);
    load4(&stage.dt[row][quad], dt);
    load4(&stage.z[row][quad], z);
    load4(&stage.dout[row][quad], dout);
    load4(&s.bias[quad], bias);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Softplus softplus(dt[i] + bias[i]);
      const float delta = inside ? softplus.value : 0.0f, gate = sigmoid(z[i]);
      slope[i] = softplus.slope;
      dt[i] = delta;
      gating[i] = z[i] * gate;
      dy[i] = dout[i] * gating[i];
      dz_factor[i] = dout[i] * (gate * (1.0f + z[i] * (1.0f - gate)));
    }
    float4* drive = reinterpret_cast<float4*>(&s.drive[row][quad]);
    drive[0] = make_float4(dt[0], dt[0] * u[0], dt[1], dt[1] * u[1]);
    drive[1] = make_float4(dt[2], dt[2] * u[2], dt[3], dt[3] * u[3]);
    store4(&s.dy[row][quad], dy);
    store4(&s.slope[row][quad], slope);
    store4(&s.dz_factor[row][quad], dz_factor);
    if (p.out) store4(&s.gating[row][quad], gating);
  };

  // Everything elementwise that needs the tile's sums over states, and the block's part of B̄ and C̄.
  const auto finish = [&](int tile) {
    const typename Shared::Stage& stage = s.stage[tile & 1];
#pragma unroll
    for (int i = 0; i < kTile / kWarps; ++i) {
      const int t = lane.warp * (kTile / kWarps) + i, token = tile * kTile + t;
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) sum += s.columns[t][w][lane.lane];
      if (token < x.tokens) {
        const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * x.batch + b) * x.tokens + token;
        p.columns[(at * x.slices + p.slice) * (2 * kStates) + lane.lane] = sum;
      }
    }
    const int token = tile * kTile + row, channel = first_channel + quad;
    if (token >= x.tokens) return;
    float readout[4], dinput[4], dexponent[4];
    load4(&s.readout[row][quad], readout);
    load4(&s.sums[row][0][quad], dinput);
    load4(&s.sums[row][1][quad], dexponent);
    const std::int64_t at = x.sequence(b) + static_cast<std::int64_t>(token) * x.channels;
    if (x.slices > 1) {
      const std::int64_t plane = x.sequence(x.batch);
      float* planes = p.planes + at + channel;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (channel + i >= x.channels) continue;
        if (p.slice > 0) {
          readout[i] += planes[i], dinput[i] += planes[plane + i], dexponent[i] += planes[2 * plane + i];
        }
        if (p.slice < x.slices - 1) {
          planes[i] = readout[i], planes[plane + i] = dinput[i], planes[2 * plane + i] = dexponent[i];
        }
      }
      if (p.slice < x.slices - 1) return;
    }
    float u[4], dy[4], slope[4], dz_factor[4], gating[4] = {}, skip[4], dskip[4], dbias[4], gated[4] = {}, du[4];
    load4(&stage.u[row][quad], u);
    load4(&s.dy[row][quad], dy);
    load4(&s.slope[row][quad], slope);
    load4(&s.dz_factor[row][quad], dz_factor);
    if (p.out) load4(&s.gating[row][quad], gating);
    load4(&s.skip[quad], skip);
    load4(&s.dskip[row][quad], dskip);
    load4(&s.dbias[row][quad], dbias);
    if (p.gated_readout) load4(&stage.gated_readout[row][quad], gated);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float ddt = (dexponent[i] * kLn2 + u[i] * dinput[i]) * slope[i];
      dbias[i] += ddt;
      dskip[i] += dy[i] * u[i];
      du[i] = skip[i] * dy[i] + s.drive[row][quad + i].x * dinput[i];
      const float y = readout[i] + gated[i] + skip[i] * u[i];
      dz_factor[i] *= y, gating[i] *= y;
      slope[i] = ddt;
    }
    store4(&s.dskip[row][quad], dskip);
    store4(&s.dbias[row][quad], dbias);
    store_row(p.du + at, channel, x, du);
    store_row(p.ddt + at, channel, x, slope);
    store_row(p.dz + at, channel, x, dz_factor);
    if (p.out) store_row(p.out + at, channel, x, gating);
  };

  const auto sweep = [&](int tile) {
    const typename Shared::Stage& stage = s.stage[tile & 1];
    float decay[kTile][2][4], h[kTile + 1][2][4];
#pragma unroll
    for (int c = 0; c < 2; ++c) load_states(stage.states[lane.local[c]], lane, h[0][c]);
    float even = 0.0f;  // the readout of the even step before
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      float B[4], C[4], readout[2] = {};
      load4(&stage.BC[t][0][lane.order][lane.first_state], B);
      load4(&stage.BC[t][1][lane.order][lane.first_state], C);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float2 drive = s.drive[t][lane.local[c]];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          decay[t][c][j] = exp2_fast(drive.x * rate[c][j]);
          h[t + 1][c][j] = decay[t][c][j] * h[t][c][j] + drive.y * B[j];
          readout[c] += C[j] * h[t + 1][c][j];
        }
      }
      const float sum = readout[0] + exchange(readout[1], 1);
      if (t % 2 == 0) {
        even = sum;
      } else {
        const float kept = lane.upper_group() ? sum : even, sent = lane.upper_group() ? even : sum;
        s.readout[t - 1 + lane.group / 2][lane.local[0]] = kept + exchange(sent, 2);
      }
    }
    float sums[kTile], columns[kTile];
#pragma unroll
    for (int t = kTile - 1; t >= 0; --t) {
      float B[4], C[4], lambda[2][4];
      load4(&stage.BC[t][0][lane.order][lane.first_state], B);
      load4(&stage.BC[t][1][lane.order][lane.first_state], C);
      const float dy[2] = {s.dy[t][lane.local[0]], s.dy[t][lane.local[1]]};
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int j = 0; j < 4; ++j) lambda[c][j] = carry[c][j] + dy[c] * C[j];
      }
#pragma unroll(kReaders > 0 ? kReaders : 1)
      for (int k = 0; k < readers; ++k) {
        const typename Shared::ReaderStage& reader = s.reader(k, tile);
        float reader_C[4];
        load4(&reader.C[t][lane.order][lane.first_state], reader_C);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float q = to_float(reader.q[t][lane.local[c]]);
#pragma unroll
          for (int j = 0; j < 4; ++j) lambda[c][j] += q * reader_C[j];
        }
      }
      float dB[4] = {}, dC[4] = {}, dinput[2] = {}, dexponent[2] = {};
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float2 drive = s.drive[t][lane.local[c]];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          dinput[c] += lambda[c][j] * B[j];
          dB[j] += drive.y * lambda[c][j];
          dC[j] += dy[c] * h[t + 1][c][j];
          carry[c][j] = decay[t][c][j] * lambda[c][j];
          const float slope = carry[c][j] * h[t][c][j];
          drate[c][j] += slope * drive.x;
          dexponent[c] += slope * rate[c][j];
        }
      }
      const float input = dinput[0] + exchange(dinput[1], 1), exponent = dexponent[0] + exchange(dexponent[1], 1);
      sums[t] = (lane.upper_group() ? exponent : input) + exchange(lane.upper_group() ? input : exponent, 2);
      const float to_B = sum_states(dB), to_C = sum_states(dC);
      columns[t] = (lane.upper_half() ? to_C : to_B) + exchange(lane.upper_half() ? to_B : to_C, 16);
    }
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      s.sums[t][lane.group / 2][lane.local[0]] = sums[t];
      s.columns[t][lane.warp][lane.lane / 16 * kStates + lane.state(0)] = columns[t];
    }
  };

  const int tiles = (x.tokens + kTile - 1) / kTile, begin = segment * p.tiles_a_segment;
  const int end = min(begin + p.tiles_a_segment, tiles);
  fetch(end - 1);
  for (int tile = end - 1; tile >= begin; --tile) {
    wait_for_copies();
    __syncthreads();  // the tile has arrived, the sums of the last one are complete
    if (tile + 1 < end) finish(tile + 1);
    prepare(tile);
    __syncthreads();
    if (tile > begin) fetch(tile - 1);
    sweep(tile);
  }
  __syncthreads();
  finish(begin);

  const std::int64_t walk = static_cast<std::int64_t>(b) * p.segments.count + segment;
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int channel = first_channel + lane.local[c];
    if (channel >= x.channels) continue;
    float* to = p.rates + ((walk * x.slices + p.slice) * x.channels + channel) * kStates;
#pragma unroll
    for (int j = 0; j < 4; ++j) to[lane.state(j)] = drate[c][j];
  }
  if (p.slice < x.slices - 1) return;
  __syncthreads();
  const int local = threadIdx.x % kChannels, channel = first_channel + local;
  if (channel >= x.channels) return;
  const auto& parts = threadIdx.x < kChannels ? s.dskip : s.dbias;
  float sum = 0.0f;
#pragma unroll
  for (int t = 0; t < kTile; ++t) sum += parts[t][local];
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
  // One reader of float32 would not fit into the registers.
  constexpr int kOne = std::is_same_v<T, float> ? -1 : 1;
  const auto kernel = p.readers == 0   ? main_kernel<T, 0>
                      : p.readers == 1 ? main_kernel<T, kOne>
                      : p.readers == 2 ? main_kernel<T, 2>
                                       : main_kernel<T, -1>;
  launch(kernel, grid, shared, native, p);
}

/// The extents, with rows that may be copied 16 bytes at a time when every activation of the call allows it.
Extents call_extents(const ScanBackwardArgs& args) {
  Extents x = extents_of(args.own);
  for (const Tensor& tensor :
       {args.own.u, args.own.dt, args.gate, args.z, args.dout, args.du, args.ddt, args.dz, args.dgate, args.q, args.out}) {
    require_alignment(x, tensor);
  }
  for (const ScanRecurrence& source : args.sources) {
    require_alignment(x, source.u);
    require_alignment(x, source.dt);
  }
  for (const ScanReader& reader : args.readers) require_alignment(x, reader.q);
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
  p.skip = args.skip.as<float>(), p.z = pointer<const T>(args.z), p.dout = pointer<const T>(args.dout);
  p.gated_readout = dense ? pointer<const T>(args.du) : nullptr;
  p.du = pointer<T>(args.du), p.ddt = pointer<T>(args.ddt), p.dz = pointer<T>(args.dz);
  p.out = args.out ? pointer<T>(args.out) : nullptr;
  p.columns = scratch + layout.columns, p.rates = scratch + layout.rates, p.vectors = scratch + layout.vectors;
  p.planes = scratch + layout.planes;
  const std::int64_t tiles = pieces(x.tokens, kTile);
  p.tiles_a_segment = static_cast<int>(pieces(tiles, segments_of(x.batch, x.tokens, x.channels)));
  p.segments = {scratch + layout.carries, scratch + layout.sums, static_cast<int>(pieces(tiles, p.tiles_a_segment))};
  if (p.segments.count > 1) {
    for (p.slice = 0; p.slice < x.slices; ++p.slice) run_segments(native, p);
    run_enter_segments(native, x, p.own, p.segments, nullptr, true);
  }
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
