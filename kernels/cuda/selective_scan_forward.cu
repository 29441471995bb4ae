// The selective scan forward on the GPU: a block walks 64 channels of one sequence through time, all states in registers.
//
// Two neighbouring lanes own a channel, eight of its 16 states each. Tiles of 16 tokens: Δ (one softplus a channel and
// token) and Δu of every recurrence go to shared memory once, B and C beside them; raw inputs arrive one tile ahead by
// asynchronous copies. The readout of eight steps stays in registers until they are done, so that no store in the step loop
// holds back its loads.
//
// A state-step costs 4 FP32 and one ex2, with one FP32 more for each source (h + g Σ h_s is formed before the product with
// C), and 2.25 floats from shared memory (1.25 more a source). Bytes of device memory a channel and token in bf16: 8, 4 a
// source and 2 for the gate, 4 for saved states.
#include "kernels/cuda/scan_common.cuh"
#include "kernels/cuda/scan_segments.cuh"

namespace dm::cuda {
namespace scan {
namespace {

constexpr int kTile = 16;
constexpr int kHalf = 8;  // states of a lane; steps between two stores of the readout
constexpr int kMaxParts = 32;
/// Recurrences that fit into registers: the layer's own and two sources. More, or more than 16 states, take the sliced
/// kernel.
constexpr int kMaxFastSources = 2;
/// Four rows of the readout's tile apart is half of the banks.
constexpr int kReadoutRow = kChannels + 4;

template <class T>
struct ForwardParams {
  Extents x;
  Recurrence<T> recurrence[kMaxParts];  ///< The layer's own, then its sources.
  int recurrences;
  const T* gate;
  const float* skip;
  const T* z;
  T* out;
  float* final_state;
  int tiles_a_segment;
  Segments
      segments[1 + kMaxFastSources];  ///< Of each recurrence; what enters them replaces `initial` when there are several.
};

/// Where float2 (Δ, Δu) of a channel lies in its row: rotated so that lanes that write eight channels each meet no bank
/// twice.
__device__ int drive_unit(int pair) {
  return (pair & ~3) | ((pair & 3) ^ ((pair >> 3) & 3));
}

/// Δ and Δu of this thread's eight channels of one token; steps beyond the sequence are the identity (Δ = 0).
template <class T>
__device__ void prepare_drive(float4* row, const T* u, const T* dt, const float* bias, bool inside) {
  const int k = threadIdx.x % 8, c = k * kVector;
  float us[kVector], dts[kVector], biases[kVector];
  load8(u + c, us);
  load8(dt + c, dts);
  load8(bias + c, biases);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float first = inside ? Softplus(dts[2 * j] + biases[2 * j]).value : 0.0f;
    const float second = inside ? Softplus(dts[2 * j + 1] + biases[2 * j + 1]).value : 0.0f;
    row[4 * k + (j ^ (k >> 1))] = make_float4(first, first * us[2 * j], second, second * us[2 * j + 1]);
  }
}

template <class T>
__device__ void prepare_gate(float* row, const T* gate) {
  const int c = threadIdx.x % 8 * kVector;
  float g[kVector];
  load8(gate + c, g);
#pragma unroll
  for (int i = 0; i < kVector; ++i) g[i] *= sigmoid(g[i]);
  store8(row + c, g);
}

/// out = (y + skip ⊙ u) ⊙ silu(z) for this thread's eight channels of one token.
template <class T>
__device__ void write_out(const ForwardParams<T>& p, int token, int channel, const float* y, const T* u, const T* z,
                          const float* skip) {
  if (token >= p.x.tokens) return;
  const int c = threadIdx.x % 8 * kVector;
  float result[kVector], us[kVector], zs[kVector], skips[kVector];
  load8(y + c, result);
  load8(u + c, us);
  load8(z + c, zs);
  load8(skip + c, skips);
#pragma unroll
  for (int i = 0; i < kVector; ++i) result[i] = (result[i] + skips[i] * us[i]) * (zs[i] * sigmoid(zs[i]));
  T* row = p.out + p.x.sequence(blockIdx.y) + static_cast<std::int64_t>(token) * p.x.channels;
  store_row(row, channel + c, p.x, result);
}

/// Sums the readout of eight steps over the two lanes of a channel; each lane stores four of them.
__device__ void store_readout(float (*rows)[kReadoutRow], const float (&y)[kHalf], int local, int half) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float mine = half ? y[i + 4] : y[i], others = half ? y[i] : y[i + 4];
    rows[i + 4 * half][local] = mine + __shfl_xor_sync(0xffffffffu, others, 1);
  }
}

/// The start of eight states of a channel; zero where there is none.
template <class T>
__device__ void load_start(const ForwardParams<T>& p, int r, int channel, int first_state, float (&h)[kHalf]) {
  const Extents& x = p.x;
#pragma unroll
  for (int j = 0; j < kHalf; ++j) h[j] = 0.0f;
  if (channel >= x.channels) return;
  if (p.segments[0].count > 1) {
    const Segments& segments = p.segments[r];
    load8(segments.states + segments.state_row(x, blockIdx.y, blockIdx.z, 0, channel) + first_state, h);
  } else if (p.recurrence[r].initial) {
    const std::int64_t row = static_cast<std::int64_t>(blockIdx.y) * x.channels + channel;
#pragma unroll
    for (int j = 0; j < kHalf; ++j) {
      if (first_state + j < x.states) h[j] = p.recurrence[r].initial[row * x.states + first_state + j];
    }
  }
}

template <class T>
__device__ void store_final(const ForwardParams<T>& p, int channel, int first_state, const float (&h)[kHalf]) {
  const Extents& x = p.x;
  if (!p.final_state || channel >= x.channels) return;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.y) * x.channels + channel;
#pragma unroll
  for (int j = 0; j < kHalf; ++j) {
    if (first_state + j < x.states) p.final_state[row * x.states + first_state + j] = h[j];
  }
}

template <class T, int kSources>
struct alignas(16) ForwardShared {
  static constexpr int kRecurrences = 1 + kSources;
  struct Stage {
    T u[kRecurrences][kTile][kChannels], dt[kRecurrences][kTile][kChannels];
    T z[kTile][kChannels], gate[kSources > 0 ? kTile : 1][kChannels];
    float B[kRecurrences][kTile][kStates], C[kTile][kStates];
  } stage[2];
  float4 drive[kRecurrences][kTile][kChannels / 2];
  float gate[kSources > 0 ? kTile : 1][kChannels];
  float y[kTile][kReadoutRow];
  float bias[kRecurrences][kChannels], skip[kChannels];
};

template <class T, int kSources>
__global__ void __launch_bounds__(kThreads, kSources == 0   ? 4
                                            : kSources == 1 ? 3
                                                            : 2) forward_kernel(const __grid_constant__ ForwardParams<T> p) {
  constexpr int kRecurrences = 1 + kSources;
  using Shared = ForwardShared<T, kSources>;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  Shared& s = *reinterpret_cast<Shared*>(shared_bytes);
  const Extents& x = p.x;
  const int b = blockIdx.y, first_channel = blockIdx.x * kChannels;
  const int local = threadIdx.x / 2, half = threadIdx.x % 2, channel = first_channel + local, first_state = half * kHalf;
  const int row = threadIdx.x / 8;  // of this thread's elementwise work
  const int drive_at = 2 * drive_unit(local / 2) + local % 2;

  float rate[kRecurrences][kHalf], h[kRecurrences][kHalf];
#pragma unroll
  for (int r = 0; r < kRecurrences; ++r) {
#pragma unroll
    for (int j = 0; j < kHalf; ++j) rate[r][j] = rate_of(p.recurrence[r], x, channel, first_state + j);
    load_start(p, r, channel, first_state, h[r]);
  }
  if (threadIdx.x < kChannels) {
    const int c = first_channel + static_cast<int>(threadIdx.x);
#pragma unroll
    for (int r = 0; r < kRecurrences; ++r) s.bias[r][threadIdx.x] = c < x.channels ? p.recurrence[r].dt_bias[c] : 0.0f;
    s.skip[threadIdx.x] = c < x.channels ? p.skip[c] : 0.0f;
  }

  const auto fetch = [&](int tile) {
    typename Shared::Stage& stage = s.stage[tile & 1];
    const int token = tile * kTile, first_column = x.columns - 2 * x.states;
#pragma unroll
    for (int r = 0; r < kRecurrences; ++r) {
      const Recurrence<T>& from = p.recurrence[r];
      copy_rows<kTile>(stage.u[r][0], from.u + x.sequence(b), x, token, first_channel);
      copy_rows<kTile>(stage.dt[r][0], from.dt + x.sequence(b), x, token, first_channel);
      copy_columns<kTile>(stage.B[r][0], from.dbc + x.column_rows(b), x, token, first_column, x.states);
    }
    copy_columns<kTile>(stage.C[0], p.recurrence[0].dbc + x.column_rows(b), x, token, first_column + x.states, x.states);
    copy_rows<kTile>(stage.z[0], p.z + x.sequence(b), x, token, first_channel);
    if constexpr (kSources > 0) copy_rows<kTile>(stage.gate[0], p.gate + x.sequence(b), x, token, first_channel);
  };
  const auto prepare = [&](int tile) {
    typename Shared::Stage& stage = s.stage[tile & 1];
#pragma unroll
    for (int r = 0; r < kRecurrences; ++r) {
      prepare_drive(s.drive[r][row], stage.u[r][row], stage.dt[r][row], s.bias[r], tile * kTile + row < x.tokens);
    }
    if constexpr (kSources > 0) prepare_gate(s.gate[row], stage.gate[row]);
  };
  const auto finish = [&](int tile) {
    typename Shared::Stage& stage = s.stage[tile & 1];
    write_out(p, tile * kTile + row, first_channel, s.y[row], stage.u[0][row], stage.z[row], s.skip);
  };
  // Eight steps from row `begin` of the tile.
  const auto advance = [&](int tile, int begin) {
    const typename Shared::Stage& stage = s.stage[tile & 1];
    float y[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const int t = begin + i;
      float seen[kHalf], B[kHalf], C[kHalf];
#pragma unroll
      for (int r = 0; r < kRecurrences; ++r) {
        const float2 drive = reinterpret_cast<const float2*>(s.drive[r][t])[drive_at];
        load8(stage.B[r][t] + first_state, B);
        const float gate = r > 0 ? s.gate[t][local] : 1.0f;
#pragma unroll
        for (int j = 0; j < kHalf; ++j) {
          h[r][j] = exp2_fast(drive.x * rate[r][j]) * h[r][j] + drive.y * B[j];
          seen[j] = r == 0 ? h[r][j] : seen[j] + gate * h[r][j];
        }
      }
      load8(stage.C[t] + first_state, C);
      y[i] = 0.0f;
#pragma unroll
      for (int j = 0; j < kHalf; ++j) y[i] += C[j] * seen[j];
    }
    store_readout(&s.y[begin], y, local, half);
  };

  const int tiles = (x.tokens + kTile - 1) / kTile, begin = blockIdx.z * p.tiles_a_segment;
  const int end = min(begin + p.tiles_a_segment, tiles);
  fetch(begin);
  for (int tile = begin; tile < end; ++tile) {
    wait_for_copies();
    __syncthreads();  // the tile has arrived, the readout of the last one is complete
    if (tile > begin) finish(tile - 1);
    prepare(tile);
    __syncthreads();
    if (tile + 1 < end) fetch(tile + 1);
#pragma unroll 1
    for (int step = 0; step < kTile && tile * kTile + step < x.tokens; step += kHalf) {
      if (p.recurrence[0].states && channel < x.channels) {
        const int chunk = (tile * kTile + step) / kSavedTokens;
        store8(p.recurrence[0].states + x.saved_states(b, chunk, 0) + channel * kStates + first_state, h[0]);
      }
      advance(tile, step);
    }
  }
  __syncthreads();
  finish(end - 1);
  if (end == tiles) store_final(p, channel, first_state, h[0]);
}

/// The first pass over segments: from zero to the end of each but the last, as forward_kernel without a readout.
template <class T>
struct alignas(16) SegmentShared {
  struct Stage {
    T u[kTile][kChannels], dt[kTile][kChannels];
    float B[kTile][kStates];
  } stage[2];
  float4 drive[kTile][kChannels / 2];
  float bias[kChannels];
};

template <class T>
__global__ void __launch_bounds__(kThreads, 6) segment_kernel(const __grid_constant__ ForwardParams<T> p) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  SegmentShared<T>& s = *reinterpret_cast<SegmentShared<T>*>(shared_bytes);
  const Extents& x = p.x;
  const int b = blockIdx.y, r = blockIdx.z % p.recurrences, segment = blockIdx.z / p.recurrences;
  const int first_channel = blockIdx.x * kChannels, local = threadIdx.x / 2, channel = first_channel + local;
  const int first_state = threadIdx.x % 2 * kHalf, row = threadIdx.x / 8;
  const int drive_at = 2 * drive_unit(local / 2) + local % 2;
  const Recurrence<T>& from = p.recurrence[r];

  float rate[kHalf], h[kHalf] = {}, sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kHalf; ++j) rate[j] = rate_of(from, x, channel, first_state + j);
  if (threadIdx.x < kChannels) {
    const int c = first_channel + static_cast<int>(threadIdx.x);
    s.bias[threadIdx.x] = c < x.channels ? from.dt_bias[c] : 0.0f;
  }
  const auto fetch = [&](int tile) {
    typename SegmentShared<T>::Stage& stage = s.stage[tile & 1];
    copy_rows<kTile>(stage.u[0], from.u + x.sequence(b), x, tile * kTile, first_channel);
    copy_rows<kTile>(stage.dt[0], from.dt + x.sequence(b), x, tile * kTile, first_channel);
    copy_columns<kTile>(stage.B[0], from.dbc + x.column_rows(b), x, tile * kTile, x.columns - 2 * x.states, x.states);
  };

  const int begin = segment * p.tiles_a_segment, end = begin + p.tiles_a_segment;  // only the last segment is shorter
  fetch(begin);
  for (int tile = begin; tile < end; ++tile) {
    const typename SegmentShared<T>::Stage& stage = s.stage[tile & 1];
    wait_for_copies();
    __syncthreads();
    prepare_drive(s.drive[row], stage.u[row], stage.dt[row], s.bias, true);
    __syncthreads();
    if (tile + 1 < end) fetch(tile + 1);
#pragma unroll 8
    for (int t = 0; t < kTile; ++t) {
      const float2 drive = reinterpret_cast<const float2*>(s.drive[t])[drive_at];
      float B[kHalf];
      load8(stage.B[t] + first_state, B);
      sum += drive.x;
#pragma unroll
      for (int j = 0; j < kHalf; ++j) h[j] = exp2_fast(drive.x * rate[j]) * h[j] + drive.y * B[j];
    }
  }
  if (channel >= x.channels) return;
  const Segments& segments = p.segments[r];
  store8(segments.states + segments.state_row(x, b, segment, 0, channel) + first_state, h);
  if (first_state == 0) segments.sums[segments.sum_at(x, b, segment, channel)] = sum;
}

/// Any number of sources and of states: parts (a recurrence, 16 of its states) take turns in each tile, their states waiting
/// in shared memory. The last part is the layer's own first slice.
template <class T>
struct alignas(16) SlicedShared {
  T u[kTile][kChannels], dt[kTile][kChannels], z[kTile][kChannels], gate_in[kTile][kChannels];
  float B[kTile][kStates], C[kTile][kStates];
  float4 drive[kTile][kChannels / 2];
  float gate[kTile][kChannels];
  float y[kTile][kReadoutRow];
  float bias[kChannels], skip[kChannels];
  using States = float[kHalf][kThreads];
  /// Those of each part follow.
  __device__ States& states(int part) { return reinterpret_cast<States*>(this + 1)[part]; }
  static std::size_t bytes(int parts) { return sizeof(SlicedShared) + sizeof(States) * parts; }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2) forward_sliced_kernel(const __grid_constant__ ForwardParams<T> p) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  SlicedShared<T>& s = *reinterpret_cast<SlicedShared<T>*>(shared_bytes);
  const Extents& x = p.x;
  const int b = blockIdx.y, first_channel = blockIdx.x * kChannels, parts = p.recurrences * x.slices;
  const int local = threadIdx.x / 2, half = threadIdx.x % 2, channel = first_channel + local, row = threadIdx.x / 8;
  const int drive_at = 2 * drive_unit(local / 2) + local % 2;

  for (int part = 0; part < parts; ++part) {
    float h[kHalf];
    load_start(p, part / x.slices, channel, part % x.slices * kStates + half * kHalf, h);
#pragma unroll
    for (int j = 0; j < kHalf; ++j) s.states(part)[j][threadIdx.x] = h[j];
  }
  if (threadIdx.x < kChannels) {
    const int c = first_channel + static_cast<int>(threadIdx.x);
    s.skip[threadIdx.x] = c < x.channels ? p.skip[c] : 0.0f;
  }

  const auto fetch = [&](int token, int part) {
    const int slice = part % x.slices, count = x.states - slice * kStates;
    const int first_column = x.columns - 2 * x.states + slice * kStates;
    const Recurrence<T>& from = p.recurrence[part / x.slices];
    copy_rows<kTile>(s.u[0], from.u + x.sequence(b), x, token, first_channel);
    copy_rows<kTile>(s.dt[0], from.dt + x.sequence(b), x, token, first_channel);
    copy_columns<kTile>(s.B[0], from.dbc + x.column_rows(b), x, token, first_column, count);
    copy_columns<kTile>(s.C[0], p.recurrence[0].dbc + x.column_rows(b), x, token, first_column + x.states, count);
    if (part == parts - 1) {
      copy_rows<kTile>(s.z[0], p.z + x.sequence(b), x, token, first_channel);
      if (p.gate) copy_rows<kTile>(s.gate_in[0], p.gate + x.sequence(b), x, token, first_channel);
    }
    if (threadIdx.x < kChannels) {
      const int c = first_channel + static_cast<int>(threadIdx.x);
      s.bias[threadIdx.x] = c < x.channels ? from.dt_bias[c] : 0.0f;
    }
    wait_for_copies();
  };

  for (int token = 0; token < x.tokens; token += kTile) {
    float y[kTile / kHalf][kHalf] = {};
    for (int part = parts - 1; part >= 0; --part) {
      const int r = part / x.slices, slice = part % x.slices, first_state = slice * kStates + half * kHalf;
      __syncthreads();  // nobody reads the part before any more
      fetch(token, part);
      __syncthreads();
      prepare_drive(s.drive[row], s.u[row], s.dt[row], s.bias, token + row < x.tokens);
      if (part == parts - 1 && p.gate) prepare_gate(s.gate[row], s.gate_in[row]);
      __syncthreads();
      float rate[kHalf], h[kHalf];
#pragma unroll
      for (int j = 0; j < kHalf; ++j) {
        rate[j] = rate_of(p.recurrence[r], x, channel, first_state + j);
        h[j] = s.states(part)[j][threadIdx.x];
      }
#pragma unroll
      for (int group = 0; group < kTile / kHalf; ++group) {
        if (token + group * kHalf >= x.tokens) break;
        if (r == 0 && p.recurrence[0].states && channel < x.channels) {
          const int chunk = (token + group * kHalf) / kSavedTokens;
          store8(p.recurrence[0].states + x.saved_states(b, chunk, slice) + channel * kStates + half * kHalf, h);
        }
#pragma unroll
        for (int i = 0; i < kHalf; ++i) {
          const int t = group * kHalf + i;
          const float2 drive = reinterpret_cast<const float2*>(s.drive[t])[drive_at];
          float B[kHalf], C[kHalf], readout = 0.0f;
          load8(s.B[t] + half * kHalf, B);
          load8(s.C[t] + half * kHalf, C);
#pragma unroll
          for (int j = 0; j < kHalf; ++j) {
            h[j] = exp2_fast(drive.x * rate[j]) * h[j] + drive.y * B[j];
            readout += C[j] * h[j];
          }
          y[group][i] += r > 0 ? s.gate[t][local] * readout : readout;
        }
      }
#pragma unroll
      for (int j = 0; j < kHalf; ++j) s.states(part)[j][threadIdx.x] = h[j];
    }
#pragma unroll
    for (int group = 0; group < kTile / kHalf; ++group) store_readout(&s.y[group * kHalf], y[group], local, half);
    __syncthreads();
    write_out(p, token + row, first_channel, s.y[row], s.u[row], s.z[row], s.skip);
  }
  for (int slice = 0; slice < x.slices; ++slice) {
    float h[kHalf];
#pragma unroll
    for (int j = 0; j < kHalf; ++j) h[j] = s.states(slice)[j][threadIdx.x];
    store_final(p, channel, slice * kStates + half * kHalf, h);
  }
}

/// Gives each recurrence its segments, in the stream's workspace.
template <class T>
void lay_out_segments(ForwardParams<T>& p, const NativeStream& native, int segments) {
  const std::int64_t rows = std::int64_t{p.x.batch} * segments * p.x.channels;
  const std::int64_t floats = rows * kStates + pieces(rows, 4) * 4;  // the next one's states are aligned
  require(static_cast<std::size_t>(floats * p.recurrences) * sizeof(float) <= native.workspace_bytes,
          "the stream's workspace is too small for the scan's segments");
  auto* at = static_cast<float*>(native.workspace);
  for (int r = 0; r < p.recurrences; ++r) {
    p.segments[r] = {at, at + rows * kStates, segments};
    at += floats;
  }
}

template <class T>
void run(const NativeStream& native, const ScanForwardArgs& args) {
  ForwardParams<T> p{};
  p.x = extents_of(args.own);
  p.recurrences = 1 + static_cast<int>(args.sources.size());
  const int parts = p.recurrences * p.x.slices;
  require(parts <= kMaxParts,
          "the selective scan on a GPU has room for 512 states a channel, those of a layer and its sources "
          "each rounded up to a multiple of 16");
  p.recurrence[0] = view<T>(args.own);
  for (int s = 1; s < p.recurrences; ++s) p.recurrence[s] = view<T>(args.sources[static_cast<std::size_t>(s - 1)]);
  for (const Tensor& tensor : {args.own.u, args.own.dt, args.z, args.gate, args.out}) require_alignment(p.x, tensor);
  for (const ScanRecurrence& source : args.sources) {
    require_alignment(p.x, source.u);
    require_alignment(p.x, source.dt);
  }
  p.gate = args.gate ? pointer<const T>(args.gate) : nullptr;
  p.skip = args.skip.as<float>(), p.z = pointer<const T>(args.z), p.out = pointer<T>(args.out);
  p.final_state = args.final_state ? args.final_state.as<float>() : nullptr;

  const bool sliced = p.x.slices > 1 || p.recurrences > 1 + kMaxFastSources;
  const std::int64_t tiles = pieces(p.x.tokens, kTile);
  p.tiles_a_segment = static_cast<int>(pieces(tiles, sliced ? 1 : segments_of(p.x.batch, p.x.tokens, p.x.channels)));
  const auto segments = static_cast<int>(pieces(tiles, p.tiles_a_segment));
  const auto blocks = static_cast<unsigned>(blocks_of(p.x.channels)), batch = static_cast<unsigned>(p.x.batch);
  if (segments > 1) {
    lay_out_segments(p, native, segments);
    const dim3 grid(blocks, batch, static_cast<unsigned>((segments - 1) * p.recurrences));
    launch(segment_kernel<T>, grid, sizeof(SegmentShared<T>), native, p);
    for (int r = 0; r < p.recurrences; ++r) {
      run_enter_segments(native, p.x, p.recurrence[r], p.segments[r], p.recurrence[r].initial, false);
    }
  }
  const dim3 grid(blocks, batch, static_cast<unsigned>(segments));
  if (sliced) {
    launch(forward_sliced_kernel<T>, grid, SlicedShared<T>::bytes(parts), native, p);
  } else if (p.recurrences == 1) {
    launch(forward_kernel<T, 0>, grid, sizeof(ForwardShared<T, 0>), native, p);
  } else if (p.recurrences == 2) {
    launch(forward_kernel<T, 1>, grid, sizeof(ForwardShared<T, 1>), native, p);
  } else {
    launch(forward_kernel<T, 2>, grid, sizeof(ForwardShared<T, 2>), native, p);
  }
}

}  // namespace
}  // namespace scan

void selective_scan_forward(Stream& stream, const ScanForwardArgs& args) {
  if (args.out.numel() == 0) return;
  with_compute_type(args.out.dtype(), [&](auto element) { scan::run<decltype(element)>(native(stream), args); });
}

}  // namespace dm::cuda
