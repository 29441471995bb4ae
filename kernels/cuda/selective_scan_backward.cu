// The selective scan backward on the GPU: a block walks 64 channels of one sequence from the last token to the first.
//
// main_kernel. A thread owns two channels and four states of each: four lanes share a channel, eight lanes of a warp share a
// state. Tiles of eight steps: elementwise part to shared memory; forward again from the tile's saved state with decays and
// states in registers; then the adjoint recurrence from the tile's end. Raw inputs, saved states, B and C arrive one tile
// ahead by asynchronous copies. A state-step costs about 14 FP32, one ex2, 3.25 floats from shared memory and, for sums over
// lanes, 1.5 shuffles.
//
// Sums over lanes scatter as they go: at each level a lane keeps half of its values and sends the other half to the lane
// that keeps those. Which half is decided by where values lie, not by selects: lane bits permute a thread's states (and swap
// its two channels), so that the kept ones always are in the same registers. B and C lie in shared memory in all four orders
// of states.
//
// Partial sums over a block's 64 channels (B̄, C̄) and over time (Ā, D̄, dt_bias) go to scratch; reduce kernels add them in a
// fixed order. More than 16 states: a launch for each slice of 16, with the sums over states of the slices before in planes
// of scratch.
//
// reader_kernel, before it: the sources' states of each tile from their saved states, all tiles in parallel; writes q,
// dgate, the sources' part of C̄, and silu(gate) ⊙ r to du, where main_kernel reads it before it overwrites it.
#include "kernels/cuda/scan_common.cuh"
#include "kernels/cuda/scan_segments.cuh"

namespace dm::cuda {
namespace scan {
namespace {

constexpr int kTile = kSavedTokens;
constexpr int kOrders = 4;  // of a thread's four states
constexpr int kWarps = kThreads / 32;
/// Rows of sums that two halves of a warp write: half of the banks apart.
constexpr int kSumRow = kChannels + 16;
constexpr int kMaxReaders = static_cast<int>(kMaxScanReaders);
constexpr int kMaxSources = 32;
constexpr int kMaxShared = 227 * 1024;

/// What a thread owns: in register c the channel local[c] of the block, in register j the state first_state + (j ^ order) of
/// the slice.
struct Lane {
  int warp, lane, group, order, first_state;
  int local[2];

  __device__ Lane() {
    warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    group = lane % 4;            // lane bits 0, 1: which four states
    order = lane / 4 % kOrders;  // lane bits 2, 3: their order
    first_state = group * 4;
    const int pair = warp * 16 + lane / 4 * 2;
    local[0] = pair + group % 2, local[1] = pair + 1 - group % 2;
  }
  __device__ int state(int j) const { return first_state + (j ^ order); }
  __device__ bool upper_group() const { return (lane & 2) != 0; }
  __device__ bool upper_half() const { return (lane & 16) != 0; }
};

__device__ float exchange(float x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask);
}

/// Four states' values over the four orders' lanes: the sum of state(0) over channels pairs whose lanes differ in bits 2
/// and 3.
__device__ float sum_states(const float (&v)[4]) {
  const float even = v[0] + exchange(v[1], 4), odd = v[2] + exchange(v[3], 4);
  return even + exchange(odd, 8);
}

/// The four states of this thread in its order.
template <class T>
__device__ void load_states(const T* from, const Lane& lane, float (&h)[4]) {
  float v[4];
  load4(from + lane.first_state, v);
  const bool swap1 = lane.order & 1, swap2 = lane.order & 2;
  const float a = swap1 ? v[1] : v[0], b = swap1 ? v[0] : v[1], c = swap1 ? v[3] : v[2], d = swap1 ? v[2] : v[3];
  h[0] = swap2 ? c : a, h[1] = swap2 ? d : b, h[2] = swap2 ? a : c, h[3] = swap2 ? b : d;
}

using Orders = float[kOrders][kStates];

/// 16 columns of a [T, R+2N] projection for eight tokens, each in the four orders: row t of `to`, order o, place n holds n ^
/// o.
__device__ void copy_orders(float* to, int stride, const float* from, const Extents& x, int token, int column, int count,
                            int thread) {
  const int n = thread % kStates, order = thread / kStates;
  const float* first = from + static_cast<std::int64_t>(token) * x.columns + column + n;
#pragma unroll
  for (int t = 0; t < kTile; ++t) {
    const bool valid = token + t < x.tokens && n < count;
    copy4_async(to + t * stride + order * kStates + (n ^ order), valid ? first + t * x.columns : from, valid);
  }
}

/// 64 channels' saved states of one chunk and slice.
template <class T>
__device__ void copy_states(T* to, const T* from, const Extents& x, int channel) {
  constexpr int kEach = 16 / static_cast<int>(sizeof(T));
#pragma unroll
  for (int i = threadIdx.x * kEach; i < kChannels * kStates; i += kThreads * kEach) {
    const bool valid = channel + i / kStates < x.channels;
    copy16_async(to + i, valid ? from + static_cast<std::int64_t>(channel) * kStates + i : from, valid);
  }
}

template <class T>
struct Reader {
  const T* q;
  const float* dbc;
};

template <class T>
struct MainParams {
  Extents x;
  Recurrence<T> own;
  Reader<T> reader[kMaxReaders];
  int readers;
  const float* skip;
  const T* z;
  const T* dout;
  const T* gated_readout;  ///< silu(gate) ⊙ r, the same memory as du; null without sources.
  T* du;
  T* ddt;
  T* dz;
  float* columns;  ///< The parts of scratch (scan_layout.h).
  float* rates;
  float* vectors;
  float* planes;
  Segments segments;  ///< What enters them from behind, when there are several.
  int slice, tiles_a_segment;
};

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
    float u[4], dt[4], z[4], dout[4], bias[4], dy[4], slope[4], dz_factor[4];
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
      dy[i] = dout[i] * (z[i] * gate);
      dz_factor[i] = dout[i] * (gate * (1.0f + z[i] * (1.0f - gate)));
    }
    float4* drive = reinterpret_cast<float4*>(&s.drive[row][quad]);
    drive[0] = make_float4(dt[0], dt[0] * u[0], dt[1], dt[1] * u[1]);
    drive[1] = make_float4(dt[2], dt[2] * u[2], dt[3], dt[3] * u[3]);
    store4(&s.dy[row][quad], dy);
    store4(&s.slope[row][quad], slope);
    store4(&s.dz_factor[row][quad], dz_factor);
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
    float u[4], dy[4], slope[4], dz_factor[4], skip[4], dskip[4], dbias[4], gated[4] = {}, du[4];
    load4(&stage.u[row][quad], u);
    load4(&s.dy[row][quad], dy);
    load4(&s.slope[row][quad], slope);
    load4(&s.dz_factor[row][quad], dz_factor);
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
      dz_factor[i] *= readout[i] + gated[i] + skip[i] * u[i];
      slope[i] = ddt;
    }
    store4(&s.dskip[row][quad], dskip);
    store4(&s.dbias[row][quad], dbias);
    store_row(p.du + at, channel, x, du);
    store_row(p.ddt + at, channel, x, slope);
    store_row(p.dz + at, channel, x, dz_factor);
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

/// The first pass over segments: the adjoint recurrence from zero at the end of each to its first token, but for the first
/// segment. Two lanes a channel, eight states each, tiles of eight steps; λ needs no states, so this is half of a forward.
template <class T>
struct alignas(16) SegmentShared {
  struct Stage {
    T dt[kTile][kChannels], z[kTile][kChannels], dout[kTile][kChannels];
    float C[kTile][kStates];
  } stage[2];
  float2 drive[kTile][kChannels];  // Δ, ȳ
  float bias[kChannels];
  struct alignas(16) ReaderStage {
    T q[kTile][kChannels];
    float C[kTile][kStates];
  };
  /// Two of each reader follow.
  __device__ ReaderStage& reader(int k, int tile) { return reinterpret_cast<ReaderStage*>(this + 1)[2 * k + (tile & 1)]; }
  static std::size_t bytes(int readers) { return sizeof(SegmentShared) + sizeof(ReaderStage) * 2 * readers; }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 4) segment_kernel(const __grid_constant__ MainParams<T> p) {
  using Shared = SegmentShared<T>;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  Shared& s = *reinterpret_cast<Shared*>(shared_bytes);
  const Extents& x = p.x;
  const int b = blockIdx.y, segment = blockIdx.z + 1, first_channel = blockIdx.x * kChannels;
  const int local = threadIdx.x / 2, channel = first_channel + local, first_state = threadIdx.x % 2 * kVector;
  const int row = threadIdx.x / 16, quad = threadIdx.x % 16 * 4;

  float rate[kVector], carry[kVector] = {}, sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kVector; ++j) rate[j] = rate_of(p.own, x, channel, p.slice * kStates + first_state + j);
  if (threadIdx.x < kChannels) {
    const int c = first_channel + static_cast<int>(threadIdx.x);
    s.bias[threadIdx.x] = c < x.channels ? p.own.dt_bias[c] : 0.0f;
  }
  const auto fetch = [&](int tile) {
    typename Shared::Stage& stage = s.stage[tile & 1];
    const int token = tile * kTile, count = x.states - p.slice * kStates;
    const int column = x.columns - x.states + p.slice * kStates;
    copy_rows<kTile>(stage.dt[0], p.own.dt + x.sequence(b), x, token, first_channel);
    copy_rows<kTile>(stage.z[0], p.z + x.sequence(b), x, token, first_channel);
    copy_rows<kTile>(stage.dout[0], p.dout + x.sequence(b), x, token, first_channel);
    copy_columns<kTile>(stage.C[0], p.own.dbc + x.column_rows(b), x, token, column, count);
    for (int k = 0; k < p.readers; ++k) {
      typename Shared::ReaderStage& reader = s.reader(k, tile);
      copy_rows<kTile>(reader.q[0], p.reader[k].q + x.sequence(b), x, token, first_channel);
      copy_columns<kTile>(reader.C[0], p.reader[k].dbc + x.column_rows(b), x, token, column, count);
    }
  };
  const auto prepare = [&](int tile) {
    const typename Shared::Stage& stage = s.stage[tile & 1];
    const bool inside = tile * kTile + row < x.tokens;
    float dt[4], z[4], dout[4], bias[4];
    load4(&stage.dt[row][quad], dt);
    load4(&stage.z[row][quad], z);
    load4(&stage.dout[row][quad], dout);
    load4(&s.bias[quad], bias);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      dt[i] = inside ? Softplus(dt[i] + bias[i]).value : 0.0f;
      dout[i] *= z[i] * sigmoid(z[i]);
    }
    float4* drive = reinterpret_cast<float4*>(&s.drive[row][quad]);
    drive[0] = make_float4(dt[0], dout[0], dt[1], dout[1]);
    drive[1] = make_float4(dt[2], dout[2], dt[3], dout[3]);
  };

  const int tiles = (x.tokens + kTile - 1) / kTile, begin = segment * p.tiles_a_segment;
  const int end = min(begin + p.tiles_a_segment, tiles);
  fetch(end - 1);
  for (int tile = end - 1; tile >= begin; --tile) {
    const typename Shared::Stage& stage = s.stage[tile & 1];
    wait_for_copies();
    __syncthreads();
    prepare(tile);
    __syncthreads();
    if (tile > begin) fetch(tile - 1);
#pragma unroll
    for (int t = kTile - 1; t >= 0; --t) {
      const float2 drive = s.drive[t][local];
      float C[kVector];
      load8(stage.C[t] + first_state, C);
      sum += drive.x;
#pragma unroll
      for (int j = 0; j < kVector; ++j) carry[j] += drive.y * C[j];
      for (int k = 0; k < p.readers; ++k) {
        const typename Shared::ReaderStage& reader = s.reader(k, tile);
        const float q = to_float(reader.q[t][local]);
        load8(reader.C[t] + first_state, C);
#pragma unroll
        for (int j = 0; j < kVector; ++j) carry[j] += q * C[j];
      }
#pragma unroll
      for (int j = 0; j < kVector; ++j) carry[j] *= exp2_fast(drive.x * rate[j]);
    }
  }
  if (channel >= x.channels) return;
  store8(p.segments.states + p.segments.state_row(x, b, segment, p.slice, channel) + first_state, carry);
  if (first_state == 0) p.segments.sums[p.segments.sum_at(x, b, segment, channel)] = sum;
}

template <class T>
struct ReaderParams {
  Extents x;
  Recurrence<T> source[kMaxSources];
  int sources;
  const float* dbc;
  const T* gate;
  const T* z;
  const T* dout;
  T* q;
  T* dgate;
  T* gated_readout;
  float* source_columns;
  int tiles_a_block;
};

template <class T>
struct alignas(16) ReaderShared {
  struct Stage {
    T u[kTile][kChannels], dt[kTile][kChannels];
    T states[kChannels][kStates];
    Orders B[kTile];
  } stage[2];
  Orders C[2][kTile];  // of this slice and of the next
  T z[kTile][kChannels], dout[kTile][kChannels], gate[kTile][kChannels];
  float2 drive[kTile][kChannels];
  float q[kTile][kChannels], gate_value[kTile][kChannels], dgate_factor[kTile][kChannels];
  float readout[kTile][kSumRow];
  float columns[kTile][kWarps][kStates];
  struct alignas(16) Part {
    float rate[kChannels][kStates];
    float bias[kChannels];
  };
  /// One of each slice and source follows.
  __device__ Part& part(int i) { return reinterpret_cast<Part*>(this + 1)[i]; }
  static std::size_t bytes(int parts) { return sizeof(ReaderShared) + sizeof(Part) * parts; }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 3) reader_kernel(const __grid_constant__ ReaderParams<T> p) {
  using Shared = ReaderShared<T>;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  Shared& s = *reinterpret_cast<Shared*>(shared_bytes);
  const Extents& x = p.x;
  const int b = blockIdx.y, first_channel = blockIdx.x * kChannels, parts = x.slices * p.sources;
  const Lane lane;
  const int row = threadIdx.x / 16, quad = threadIdx.x % 16 * 4;

  for (int part = 0; part < parts; ++part) {
    const Recurrence<T>& source = p.source[part % p.sources];
    for (int i = threadIdx.x; i < kChannels * kStates; i += kThreads) {
      const int n = part / p.sources * kStates + i % kStates;
      s.part(part).rate[i / kStates][i % kStates] = rate_of(source, x, first_channel + i / kStates, n);
    }
    if (threadIdx.x < kChannels) {
      const int c = first_channel + static_cast<int>(threadIdx.x);
      s.part(part).bias[threadIdx.x] = c < x.channels ? source.dt_bias[c] : 0.0f;
    }
  }

  // Turns: for each tile its slices, for each slice the sources.
  const auto fetch = [&](int turn) {
    const int tile = turn / parts, part = turn % parts, slice = part / p.sources, token = tile * kTile;
    const Recurrence<T>& source = p.source[part % p.sources];
    typename Shared::Stage& stage = s.stage[turn & 1];
    const int count = x.states - slice * kStates, first_column = x.columns - 2 * x.states + slice * kStates;
    const std::int64_t sequence = x.sequence(b);
    copy_rows<kTile>(stage.u[0], source.u + sequence, x, token, first_channel);
    copy_rows<kTile>(stage.dt[0], source.dt + sequence, x, token, first_channel);
    copy_states(stage.states[0], source.states + x.saved_states(b, tile, slice), x, first_channel);
    const int thread = threadIdx.x % 64;
    if (threadIdx.x < 64) {
      copy_orders(stage.B[0][0], kOrders * kStates, source.dbc + x.column_rows(b), x, token, first_column, count, thread);
    } else if (part % p.sources == 0) {
      copy_orders(s.C[(tile * x.slices + slice) & 1][0][0], kOrders * kStates, p.dbc + x.column_rows(b), x, token,
                  first_column + x.states, count, thread);
    }
    if (part == 0) {
      copy_rows<kTile>(s.z[0], p.z + sequence, x, token, first_channel);
      copy_rows<kTile>(s.dout[0], p.dout + sequence, x, token, first_channel);
      copy_rows<kTile>(s.gate[0], p.gate + sequence, x, token, first_channel);
    }
  };

  const auto prepare = [&](int turn) {
    const int tile = turn / parts, part = turn % parts;
    const typename Shared::Stage& stage = s.stage[turn & 1];
    float u[4], delta[4], bias[4];
    load4(&stage.u[row][quad], u);
    load4(&stage.dt[row][quad], delta);
    load4(&s.part(part).bias[quad], bias);
#pragma unroll
    for (int i = 0; i < 4; ++i) delta[i] = tile * kTile + row < x.tokens ? Softplus(delta[i] + bias[i]).value : 0.0f;
    float4* drive = reinterpret_cast<float4*>(&s.drive[row][quad]);
    drive[0] = make_float4(delta[0], delta[0] * u[0], delta[1], delta[1] * u[1]);
    drive[1] = make_float4(delta[2], delta[2] * u[2], delta[3], delta[3] * u[3]);
    if (part > 0) return;
    float z[4], dout[4], gate[4], q[4], dgate_factor[4];
    load4(&s.z[row][quad], z);
    load4(&s.dout[row][quad], dout);
    load4(&s.gate[row][quad], gate);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float dy = dout[i] * (z[i] * sigmoid(z[i])), g = sigmoid(gate[i]);
      dgate_factor[i] = dy * (g * (1.0f + gate[i] * (1.0f - g)));
      gate[i] *= g;
      q[i] = dy * gate[i];
    }
    store4(&s.q[row][quad], q);
    store4(&s.gate_value[row][quad], gate);
    store4(&s.dgate_factor[row][quad], dgate_factor);
  };

  // After the last source of a slice, the block's part of C̄; after the last slice of a tile, q, dgate and silu(gate) ⊙ r.
  const auto finish = [&](int turn) {
    const int tile = turn / parts, slice = turn % parts / p.sources;
    const int t = threadIdx.x / kStates, n = threadIdx.x % kStates;
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += s.columns[t][w][n];
    if (tile * kTile + t < x.tokens) {
      const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * x.batch + b) * x.tokens + tile * kTile + t;
      p.source_columns[(at * x.slices + slice) * kStates + n] = sum;
    }
    if (slice < x.slices - 1 || tile * kTile + row >= x.tokens) return;
    float r[4], q[4], gate[4], dgate[4];
    load4(&s.readout[row][quad], r);
    load4(&s.q[row][quad], q);
    load4(&s.gate_value[row][quad], gate);
    load4(&s.dgate_factor[row][quad], dgate);
#pragma unroll
    for (int i = 0; i < 4; ++i) gate[i] *= r[i], dgate[i] *= r[i];
    const std::int64_t at = x.sequence(b) + static_cast<std::int64_t>(tile * kTile + row) * x.channels;
    store_row(p.q + at, first_channel + quad, x, q);
    store_row(p.dgate + at, first_channel + quad, x, dgate);
    store_row(p.gated_readout + at, first_channel + quad, x, gate);
  };

  float h[kTile][2][4];  // Σ_s h^s of the slice
  const auto add_states = [&](int turn) {
    const typename Shared::Stage& stage = s.stage[turn & 1];
    const int part = turn % parts;
    const bool first = part % p.sources == 0;
    float state[2][4], rate[2][4];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      load_states(stage.states[lane.local[c]], lane, state[c]);
      load_states(s.part(part).rate[lane.local[c]], lane, rate[c]);
    }
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      float B[4];
      load4(&stage.B[t][lane.order][lane.first_state], B);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float2 drive = s.drive[t][lane.local[c]];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          state[c][j] = exp2_fast(drive.x * rate[c][j]) * state[c][j] + drive.y * B[j];
          h[t][c][j] = first ? state[c][j] : h[t][c][j] + state[c][j];
        }
      }
    }
  };
  const auto read_out = [&](int turn) {
    const int tile = turn / parts, slice = turn % parts / p.sources;
    const Orders* C_rows = s.C[(tile * x.slices + slice) & 1];
    float even = 0.0f, even_column = 0.0f;
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      float C[4], readout[2] = {}, dC[4] = {};
      load4(&C_rows[t][lane.order][lane.first_state], C);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float q = s.q[t][lane.local[c]];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          readout[c] += C[j] * h[t][c][j];
          dC[j] += q * h[t][c][j];
        }
      }
      const float sum = readout[0] + exchange(readout[1], 1), column = sum_states(dC);
      if (t % 2 == 0) {
        even = sum, even_column = column;
        continue;
      }
      const float total = (lane.upper_group() ? sum : even) + exchange(lane.upper_group() ? even : sum, 2);
      float& readout_at = s.readout[t - 1 + lane.group / 2][lane.local[0]];
      readout_at = slice > 0 ? readout_at + total : total;
      s.columns[t - 1 + lane.lane / 16][lane.warp][lane.state(0)] =
          (lane.upper_half() ? column : even_column) + exchange(lane.upper_half() ? even_column : column, 16);
    }
  };

  const int tiles = (x.tokens + kTile - 1) / kTile;
  const int begin = blockIdx.z * p.tiles_a_block * parts,
            end = min((static_cast<int>(blockIdx.z) + 1) * p.tiles_a_block, tiles) * parts;
  fetch(begin);
  for (int turn = begin; turn < end; ++turn) {
    wait_for_copies();
    __syncthreads();  // the turn's inputs have arrived, the sums of the last one are complete
    if (turn > begin && turn % p.sources == 0) finish(turn - 1);
    prepare(turn);
    __syncthreads();
    if (turn + 1 < end) fetch(turn + 1);
    add_states(turn);
    if ((turn + 1) % p.sources == 0) read_out(turn);
  }
  __syncthreads();
  finish(end - 1);
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
void run_reader(const NativeStream& native, const ScanBackwardArgs& args, const Extents& x, float* source_columns) {
  ReaderParams<T> p{};
  p.x = x;
  p.sources = static_cast<int>(args.sources.size());
  const int parts = x.slices * p.sources;
  require(p.sources <= kMaxSources && ReaderShared<T>::bytes(parts) <= kMaxShared,
          "the selective scan's backward on a GPU has no shared memory for so many states of sources");
  for (int s = 0; s < p.sources; ++s) p.source[s] = view<T>(args.sources[static_cast<std::size_t>(s)]);
  p.dbc = args.own.dbc.as<float>();
  p.gate = pointer<const T>(args.gate), p.z = pointer<const T>(args.z), p.dout = pointer<const T>(args.dout);
  p.q = pointer<T>(args.q), p.dgate = pointer<T>(args.dgate), p.gated_readout = pointer<T>(args.du);
  p.source_columns = source_columns;
  p.tiles_a_block = 16;
  const dim3 grid(static_cast<unsigned>(blocks_of(x.channels)), static_cast<unsigned>(x.batch),
                  static_cast<unsigned>(pieces(pieces(x.tokens, kTile), p.tiles_a_block)));
  launch(reader_kernel<T>, grid, ReaderShared<T>::bytes(parts), native, p);
}

template <class T>
void run_segments(const NativeStream& native, const MainParams<T>& p) {
  const dim3 grid(static_cast<unsigned>(blocks_of(p.x.channels)), static_cast<unsigned>(p.x.batch),
                  static_cast<unsigned>(p.segments.count - 1));
  launch(segment_kernel<T>, grid, SegmentShared<T>::bytes(p.readers), native, p);
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
Extents extents_of_call(const ScanBackwardArgs& args) {
  Extents x = extents_of(args.own);
  for (const Tensor& tensor :
       {args.own.u, args.own.dt, args.gate, args.z, args.dout, args.du, args.ddt, args.dz, args.dgate, args.q}) {
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
  const Extents x = extents_of_call(args);
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
}  // namespace scan

void selective_scan_backward(Stream& stream, const ScanBackwardArgs& args) {
  if (args.du.numel() == 0) return;
  with_compute_type(args.du.dtype(), [&](auto element) { scan::run<decltype(element)>(native(stream), args); });
}

}  // namespace dm::cuda
