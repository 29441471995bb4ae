// The selective scan forward on the GPU: a block walks 64 channels of one sequence through time, all states in registers.
//
// A block has four warps that make and four warps a recurrence that walk, 16 channels to a warp of either. Makers fetch raw
// inputs one tile of 16 tokens ahead, make Δ (one softplus a channel and token) and Δu of the next tile (in float32 pieces
// of it and of B and C; in bfloat16 walkers read B and C as they were fetched), and turn the readout of the last one into
// `out`. Walkers do nothing but steps (scan_forward_tile.cuh says how), so
// that their loop is short. Two tiles of work go round, and how makers and walkers wait for each other depends on the
// sources:
//   None: one barrier a tile for all. A multiprocessor has two blocks, of which one works while the other's tile begins.
//   Some: one block fills a multiprocessor, so nothing may wait for a tile to begin. Walkers of a recurrence wait for its
//   part of the next tile to be made, and ask for its first exponentials in the last steps of this one; makers wait for the
//   last tile to be walked, recurrence by recurrence, and for what they have fetched together. So recurrences are out of
//   step, by as much as it takes to make one.
//
// Where sequences and channels are few, blocks of 16 channels take over (scan_narrow_tile.cuh).
//
// Bytes of device memory a channel and token in bf16: 8, 4 a source and 2 for the gate, 4 for saved states.
#include "kernels/cuda/register_share.cuh"
#include "kernels/cuda/scan_forward_fetch.cuh"
#include "kernels/cuda/scan_forward_params.cuh"
#include "kernels/cuda/scan_forward_sliced.cuh"
#include "kernels/cuda/scan_narrow_make.cuh"
#include "kernels/cuda/scan_narrow_walk.cuh"

namespace dm::cuda {
namespace scan {
namespace forward {
namespace {

/// kRecurrences that a block walks; kReadout: with y of each, else to their last states only.
template <class T, int kRecurrences, bool kReadout>
struct alignas(16) ForwardShared {
  static constexpr int kSources = kRecurrences - 1, kGates = kReadout && kSources > 0 ? 1 : 0;
  static constexpr bool kExact = std::is_same_v<T, float>;
  /// Steps by which exponentials are asked for ahead, and what ties them, as measured.
  static constexpr int kLead = kRecurrences == 1 ? 2 : 1;
  static constexpr bool kLate = kRecurrences == 3;
  /// One barrier a tile for all; also where shared memory has no room for more readouts than two.
  static constexpr bool kTogether = kRecurrences == 1 || (kExact && kRecurrences == 3);
  /// Tiles of which readouts are kept: four if the next tile is made before the last one's readout is taken, and its C
  /// before all have walked the last one.
  static constexpr int kReadouts = kTogether ? 2 : 4;
  /// What a tile's making needs, and what its output does.
  struct Inputs {
    Rows<T> dt[kRecurrences], source_u[kSources];
    struct Cut {  // before they are cut
      float B[kTile][kStates], C[kTile][kStates], source_B[kSources][kTile][kStates];
    } columns[kExact ? 1 : 0];
  } inputs[2];
  struct OutputInputs {
    Rows<T> z[kReadout ? 1 : 0], gate[kGates];
  } output_inputs[2];
  Rows<T> u[4];  ///< From its fetch to the output.
  /// What walkers read.
  struct Work {
    Drive<kExact> drive[kRecurrences][kWarps];
    InputColumns<kExact> input[kExact ? kRecurrences : 0];
  } work[2];
  /// Columns that walkers read as they are fetched, from then on until the tile has been walked.
  struct Columns {
    InputColumns<false> input[kRecurrences];
    ReadoutColumns<false> readout;
  } columns[kExact ? 0 : 4];
  /// C, and what walkers make of it: two tokens of a group and two channels to a lane.
  struct Readouts {
    ReadoutColumns<true> columns[kExact ? 1 : 0];
    float4 y[kReadout ? kRecurrences : 0][kWarps][kTile / kGroup][32];
  } readouts[kReadouts];
  WarpBarrier fetched;                                         ///< By all makers, of what the next tile is made of.
  WarpBarrier made[2][kRecurrences], walked[2][kRecurrences];  ///< Of each in work[]; phases are the tiles in it.

  /// By all threads of the block, before anything else.
  __device__ void start() {
    if constexpr (!kTogether) {
      if (threadIdx.x == 0) fetched.start(kWarps);
      if (threadIdx.x < 2 * kRecurrences) made[0][threadIdx.x].start(kWarps), walked[0][threadIdx.x].start(kWarps);
      __syncthreads();
    }
  }
};

/// B and C that walkers read: of the first tile of work[] and readouts[], or of columns[].
template <class Shared>
__device__ const auto& first_columns(const Shared& s) {
  if constexpr (Shared::kExact) {
    return s.work[0];
  } else {
    return s.columns[0];
  }
}
template <class Shared>
__device__ const auto& first_readout(const Shared& s) {
  if constexpr (Shared::kExact) {
    return s.readouts[0].columns[0];
  } else {
    return s.columns[0].readout;
  }
}

template <int kRecurrences>
constexpr int threads_of() {
  return kThreads * (1 + kRecurrences);
}

/// Tiles of a block: iteration `tile` of its loop, from first − 1 to end, walks `tile`, makes the next and puts out the
/// last.
struct Span {
  int first, end;

  /// Of the phase in which `tile` is in its work[].
  __device__ std::uint32_t parity(int tile) const { return (tile - first) >> 1 & 1; }
};

template <class T, int kRecurrences, Fit kFit, bool kReadout>
__device__ void make(const ForwardParams<T>& p, ForwardShared<T, kRecurrences, kReadout>& s, const Span& span,
                     const Recurrence<T>* recurrences, float (&sum)[2]) {
  using Shared = ForwardShared<T, kRecurrences, kReadout>;
  const Extents& x = p.x;
  const MakerLane<T> lane;
  const int b = blockIdx.y, first_channel = blockIdx.x * kChannels, channel = first_channel + lane.first_channel;
  float bias[kRecurrences][2], skip[2] = {};
#pragma unroll
  for (int r = 0; r < kRecurrences; ++r) load_channels(recurrences[r].dt_bias, x, channel, bias[r]);
  if constexpr (kReadout) load_channels(p.skip, x, channel, skip);
  T* out = p.out + x.sequence(b) + (std::int64_t{span.first} * kTile + 2 * lane.quad) * x.channels + channel;

  Source<T> ahead(x, b, span.first, first_channel, x.channels), current = ahead;
  Source<T> current_z(x, b, span.first, first_channel, x.z_stride);
  const auto fetch_inputs = [&](int tile) {
    typename Shared::Inputs& to = s.inputs[tile & 1];
    fetch_rows<kFit>(s.u[tile & 3], recurrences[0].u, x, ahead);
    if constexpr (Shared::kExact) {
      auto& columns = to.columns[0];
      fetch_columns<kFit, kReadout>(columns.B, recurrences[0].dbc, x, b, ahead);
#pragma unroll
      for (int r = 1; r < kRecurrences; ++r) {
        fetch_columns<kFit, false>(columns.source_B[r - 1], recurrences[r].dbc, x, b, ahead);
      }
    } else {
      typename Shared::Columns& columns = s.columns[tile & 3];
      if constexpr (kReadout) fetch_readout<kFit>(columns.readout.at[0], recurrences[0].dbc, x, b, ahead);
#pragma unroll
      for (int r = 0; r < kRecurrences; ++r) {
        columns.input[r].template fetch<kFit>(recurrences[r].dbc, x, ahead.single, ahead.token);
      }
    }
#pragma unroll
    for (int r = 0; r < kRecurrences; ++r) fetch_rows<kFit>(to.dt[r], recurrences[r].dt, x, ahead);
#pragma unroll
    for (int r = 1; r < kRecurrences; ++r) {
      fetch_rows<kFit>(to.source_u[r - 1], recurrences[r].u, x, ahead);
    }
    ahead.next(x);
  };
  const auto fetch_output_inputs = [&](int tile) {
    typename Shared::OutputInputs& to = s.output_inputs[tile & 1];
    fetch_rows<kFit>(to.z[0], p.z, x, current_z);
    if constexpr (Shared::kGates > 0) fetch_rows<kFit>(to.gate[0], p.gate, x, current);
    current.next(x);
    current_z.next(x);
  };
  const auto wait_for_walkers = [&](int tile, int r) {
    // Of tiles before the first it is the phase before the first one, which has always ended.
    if constexpr (!Shared::kTogether) s.walked[tile & 1][r].wait(span.parity(tile));
  };
  const auto make_tile = [&](int tile) {
    const typename Shared::Inputs& from = s.inputs[tile & 1];
    typename Shared::Work& to = s.work[tile & 1];
    if constexpr (kReadout && Shared::kExact) {
      s.readouts[tile & (Shared::kReadouts - 1)].columns[0].fill(from.columns[0].C, threadIdx.x % kThreads, kThreads);
    }
#pragma unroll
    for (int r = 0; r < kRecurrences; ++r) {
      wait_for_walkers(tile - 2, r);
      if constexpr (Shared::kExact) {
        to.input[r].fill(r == 0 ? from.columns[0].B : from.columns[0].source_B[r - 1]);
      }
      auto& drive = to.drive[r][lane.warp];
      Values<Shared::kExact> values;
      prepare<Shared::kExact, kFit>(values, drive.kTerm, r == 0 ? s.u[tile & 3] : from.source_u[r - 1], from.dt[r], bias[r],
                                    lane, x.tokens - tile * kTile);
      drive.store(values, lane);
      if constexpr (!kReadout) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float* delta = values[0] + 4 * half;
          sum[0] += delta[0] + delta[2], sum[1] += delta[1] + delta[3];
        }
      }
      if constexpr (!Shared::kTogether) s.made[tile & 1][r].arrive();
    }
  };
  const auto put_out = [&](int tile) {
    const typename Shared::Readouts& readouts = s.readouts[tile & (Shared::kReadouts - 1)];
    const typename Shared::OutputInputs& from = s.output_inputs[tile & 1];
#pragma unroll
    for (int group = 0; group < kTile / kGroup; ++group) {
      const int begin = group * kGroup;
      const Output<(Shared::kGates > 0)> output(s.u[tile & 3], from.z[0], from.gate, skip, begin, lane);
      float own[2][2], sources[2][2] = {};
#pragma unroll
      for (int r = 0; r < kRecurrences; ++r) {
        const float4 y = readouts.y[r][lane.warp][group][threadIdx.x % 32];
        float(&to)[2][2] = r == 0 ? own : sources;
        const float values[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) to[i / 2][i % 2] = r < 2 ? values[i] : to[i / 2][i % 2] + values[i];
      }
      output.template store<kFit>(out, x, begin, x.tokens - tile * kTile, channel, lane, own, sources);
      out += std::int64_t{kGroup} * x.channels;
    }
  };

  fetch_inputs(span.first);
  for (int tile = span.first - 1; tile <= span.end; ++tile) {
    wait_for_copies();
    if constexpr (Shared::kTogether) {
      __syncthreads();  // the next tile has been fetched, this one made and the last one walked
    } else {
      s.fetched.arrive();
      s.fetched.wait((tile - span.first + 1) & 1);
    }
    if (tile + 2 < span.end) fetch_inputs(tile + 2);
    if constexpr (kReadout) {
      if (tile >= span.first && tile < span.end) fetch_output_inputs(tile);
    }
    if (tile + 1 < span.end) {
      make_tile(tile + 1);
    } else if constexpr (!Shared::kTogether) {  // nothing, but walkers look beyond the last tile
#pragma unroll
      for (int r = 0; r < kRecurrences; ++r) wait_for_walkers(tile - 1, r), s.made[(tile + 1) & 1][r].arrive();
    }
    if constexpr (kReadout) {
      if (tile > span.first) put_out(tile - 1);
    }
  }
}

/// `r` of the block's recurrences, from h; with kSaves its states are saved on the way, where there is a place for them.
template <bool kSaves, Fit kFit, class T, int kRecurrences, bool kReadout>
__device__ void walk(const ForwardParams<T>& p, ForwardShared<T, kRecurrences, kReadout>& s, const Span& span, int r,
                     const Recurrence<T>& recurrence, float (&h)[2][4]) {
  using Shared = ForwardShared<T, kRecurrences, kReadout>;
  constexpr int kWork = sizeof(typename Shared::Work), kReadouts = sizeof(typename Shared::Readouts);
  /// Quads of a tile that ask for the next one's exponentials.
  constexpr int kGoOn = Shared::kTogether ? kQuads - 1 : kQuads, kUnroll = kReadout ? kGoOn : 1;
  const Extents& x = p.x;
  const Lane lane;
  const int channel = blockIdx.x * kChannels + lane.first_channel;
  float rate[2][4];
  load_rates(recurrence, x, channel, lane.first_state, rate);
  T* states = kSaves ? saved_states(p, span.first * kTile, 0, channel, lane) : nullptr;
  const std::int64_t states_a_chunk = std::int64_t{x.channels} * kStates;
  const bool saving = states != nullptr, second = saving && (kFit == Fit::whole || channel + 1 < x.channels);

  Readout<Shared::kExact> readout;
  float y[2][2] = {};
  const auto& columns = first_columns(s);
  Walk<Shared::kLead, Shared::kExact, Shared::kLate> steps(&s, s.work[0].drive[r][lane.warp], columns.input[r], lane,
                                                           p.no_bits);
  const int C_place = steps.place_of(first_readout(s).at[0][lane.pair][lane.first_state]);
  const int y_place = kReadout ? steps.place_of(s.readouts[0].y[r][lane.warp][0][threadIdx.x % 32]) : 0;
  int now = (span.first & 1) * kWork;
  if constexpr (Shared::kTogether) {
    __syncthreads();  // the first tile is here
    __syncthreads();  // and made
  } else {
    s.made[span.first & 1][r].wait(0);
    steps.begin(now, 0, rate);
  }
#pragma unroll 1
  for (int tile = span.first; tile < span.end; ++tile) {
    const int next = kWork - now, readouts = (tile & (Shared::kReadouts - 1)) * kReadouts;
    const int fetched = (tile & 3) * static_cast<int>(sizeof(typename Shared::Columns));
    const int B = Shared::kExact ? now : fetched, C = Shared::kExact ? readouts : fetched;
    const WarpBarrier& next_made = s.made[(tile + 1) & 1][r];
    bool there = false;  // the next tile: asked for a quad ahead, so that nobody waits for the answer
    const auto walk_quad = [&](int quad, auto go_on) {
      const int half = quad % 2;
      if constexpr (!Shared::kTogether) {
        if (quad == kQuads - 2) there = next_made.ended(span.parity(tile + 1));
        if (quad == kQuads - 1 && !there) next_made.wait(span.parity(tile + 1));
      }
      if (half == 0) {
        if constexpr (kSaves) {
          const bool inside = kFit == Fit::whole || tile * kTile + quad * 4 < x.tokens;
          save_states(saving && inside, second && inside, states, h);
          states += states_a_chunk;
        }
        if constexpr (kReadout) readout.load(steps.at(C + C_place) + quad * 4 * kStates);
      }
      steps.template advance<go_on>(now, B, quad, quad == kQuads - 1 ? next : now, (quad + 1) % kQuads, rate, h,
                                    [&](int i, const float(&seen)[2][4]) {
                                      if constexpr (kReadout) readout.store(half, i, seen, lane, false, y);
                                    });
      if (kReadout && half == 1) {
        constexpr int kGroupFloats = sizeof(float4) / sizeof(float) * 32;
        store4(const_cast<float*>(steps.at(readouts + y_place)) + quad / 2 * kGroupFloats,
               {y[0][0], y[0][1], y[1][0], y[1][1]});
      }
    };
    if constexpr (Shared::kTogether) steps.begin(now, 0, rate);
#pragma unroll kUnroll
    for (int quad = 0; quad < kGoOn; ++quad) walk_quad(quad, std::true_type{});
    if constexpr (Shared::kTogether) {
      walk_quad(kQuads - 1, std::false_type{});
      __syncthreads();
    } else {
      s.walked[tile & 1][r].arrive();
    }
    now = next;
  }
}

/// Registers of a thread of either kind, out of those that a multiprocessor's two blocks (or one, with sources) begin with:
/// makers with more do more of their work at once, until walkers have too few.
template <class T, int kSources>
struct Registers {
  static constexpr bool kFew = kSources == 2 && std::is_same_v<T, float>;
  static constexpr int kMakers = kSources == 0 ? 88 : kSources == 1 ? 120 : kFew ? 80 : 104;
  static constexpr int kWalkers = kSources == 0 ? 168 : kSources == 1 ? 192 : kFew ? 144 : 136;
  static constexpr int kBlocks = kSources == 0 ? 2 : 1;
  static_assert(kBlocks * kThreads * (kMakers + (1 + kSources) * kWalkers) <= 65536);
};

template <class T, int kSources, Fit kFit>
__global__ void __launch_bounds__(threads_of<1 + kSources>(), Registers<T, kSources>::kBlocks)
    forward_kernel(const __grid_constant__ ForwardParams<T> p) {
  constexpr int kRecurrences = 1 + kSources;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& s = *reinterpret_cast<ForwardShared<T, kRecurrences, true>*>(shared_bytes);
  const int tiles = (p.x.tokens + kTile - 1) / kTile, first = blockIdx.z * p.tiles_a_segment;
  const Span span{first, min(first + p.tiles_a_segment, tiles)};
  const int r = static_cast<int>(threadIdx.x) / kThreads - 1;
  s.start();
  if (r < 0) {
    shrink_registers<Registers<T, kSources>::kMakers>();
    float unused[2];
    make<T, kRecurrences, kFit, true>(p, s, span, p.recurrence, unused);
  } else {
    grow_registers<Registers<T, kSources>::kWalkers>();
    const Lane lane;
    const int channel = blockIdx.x * kChannels + lane.first_channel;
    float h[2][4];
    load_start(p, r, channel, lane.first_state, h);
    if (kSources == 0 || r == 0) {
      walk<true, kFit>(p, s, span, r, p.recurrence[r], h);
      if (span.end == tiles) store_final(p, channel, lane.first_state, h);
    } else {
      walk<false, kFit>(p, s, span, r, p.recurrence[r], h);
    }
  }
}

/// The first pass over segments: from zero to the end of each but the last, without a readout.
template <class T, Fit kFit>
__global__ void __launch_bounds__(threads_of<1>(), 2) segment_kernel(const __grid_constant__ ForwardParams<T> p) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& s = *reinterpret_cast<ForwardShared<T, 1, false>*>(shared_bytes);
  const Extents& x = p.x;
  const Lane lane;
  const int b = blockIdx.y, r = blockIdx.z % p.recurrences, segment = blockIdx.z / p.recurrences;
  const int channel = blockIdx.x * kChannels + lane.first_channel, first = segment * p.tiles_a_segment;
  const Span span{first, first + p.tiles_a_segment};  // only the last segment is shorter
  const Segments& segments = p.segments[r];
  if (threadIdx.x < kThreads) {
    float sum[2] = {};
    make<T, 1, kFit, false>(p, s, span, p.recurrence + r, sum);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], 1);
      sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], 2);
      if (lane.quad == 0 && channel + c < x.channels) segments.sums[segments.sum_at(x, b, segment, channel + c)] = sum[c];
    }
  } else {
    float h[2][4] = {};
    walk<false, kFit>(p, s, span, 0, p.recurrence[r], h);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if (channel + c >= x.channels) continue;
      store4(segments.states + segments.state_row(x, b, segment, 0, channel + c) + lane.first_state, h[c]);
    }
  }
}

/// Narrow blocks: 16 channels, two states a lane, whole sequences.
template <class T, int kSources, Fit kFit>
__global__ void __launch_bounds__(threads_of<1 + kSources>(), kSources == 0 ? 2 : 1)
    narrow_kernel(const __grid_constant__ ForwardParams<T> p) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& s = *reinterpret_cast<NarrowShared<T, 1 + kSources>*>(shared_bytes);
  const int parts = (p.x.tokens + kTile - 1) / kTile, r = static_cast<int>(threadIdx.x) / kThreads - 1;
  s.start();
  if (r < 0) {
    NarrowMaker<T, 1 + kSources, kFit>(p, s, parts).run();
  } else {
    NarrowWalker<T, 1 + kSources, kFit>(p, s, r).run(parts);
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

template <class T, Fit kFit>
void run_in_registers(const NativeStream& native, const ForwardParams<T>& p, int segments) {
  const auto blocks = static_cast<unsigned>(blocks_of(p.x.channels)), batch = static_cast<unsigned>(p.x.batch);
  if (segments > 1) {
    const dim3 grid(blocks, batch, static_cast<unsigned>((segments - 1) * p.recurrences));
    launch(segment_kernel<T, kFit>, grid, threads_of<1>(), sizeof(ForwardShared<T, 1, false>), native, p);
    for (int r = 0; r < p.recurrences; ++r) {
      run_enter_segments(native, p.x, p.recurrence[r], p.segments[r], p.segments[r], p.recurrence[r].initial, false);
    }
  }
  const dim3 grid(blocks, batch, static_cast<unsigned>(segments));
  if (p.recurrences == 1) {
    launch(forward_kernel<T, 0, kFit>, grid, threads_of<1>(), sizeof(ForwardShared<T, 1, true>), native, p);
  } else if (p.recurrences == 2) {
    launch(forward_kernel<T, 1, kFit>, grid, threads_of<2>(), sizeof(ForwardShared<T, 2, true>), native, p);
  } else {
    launch(forward_kernel<T, 2, kFit>, grid, threads_of<3>(), sizeof(ForwardShared<T, 3, true>), native, p);
  }
}

/// Sources for which narrow blocks have room in shared memory.
template <class T>
constexpr int kNarrowSources = sizeof(NarrowShared<T, 3>) <= 227 * 1024 ? 2 : 1;

template <class T, Fit kFit>
void run_narrow(const NativeStream& native, const ForwardParams<T>& p) {
  const dim3 grid(static_cast<unsigned>(pieces(p.x.channels, kNarrowChannels)), static_cast<unsigned>(p.x.batch));
  if (p.recurrences == 1) {
    launch(narrow_kernel<T, 0, kFit>, grid, threads_of<1>(), sizeof(NarrowShared<T, 1>), native, p);
  } else if (p.recurrences == 2) {
    launch(narrow_kernel<T, 1, kFit>, grid, threads_of<2>(), sizeof(NarrowShared<T, 2>), native, p);
  } else if constexpr (kNarrowSources<T> == 2) {
    launch(narrow_kernel<T, 2, kFit>, grid, threads_of<3>(), sizeof(NarrowShared<T, 3>), native, p);
  }
}

/// Whether blocks of 16 channels and whole sequences beat blocks of 64, which are so few that their sequences have to be cut
/// into segments: where they fill one wave or two.
bool narrow_pays(std::int64_t batch, std::int64_t channels) {
  const std::int64_t blocks = batch * pieces(channels, kNarrowChannels), waves = pieces(blocks, kMultiprocessors);
  return waves <= 2 && 8 * blocks >= 7 * kMultiprocessors * waves && batch * blocks_of(channels) <= kEnoughBlocks;
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
  for (const Tensor& tensor : {args.own.u, args.own.dt, args.gate, args.out}) require_alignment(p.x, tensor);
  require_alignment(p.x, args.z);
  p.x.z_stride = static_cast<int>(args.z.row_stride);
  for (const ScanRecurrence& source : args.sources) {
    require_alignment(p.x, source.u);
    require_alignment(p.x, source.dt);
  }
  p.gate = args.gate ? pointer<const T>(args.gate) : nullptr;
  p.skip = args.skip.as<float>(), p.z = pointer<const T>(args.z), p.out = pointer<T>(args.out);
  p.final_state = args.final_state ? args.final_state.as<float>() : nullptr;

  if (p.x.slices > 1 || p.recurrences > 1 + kMaxFastSources) {
    const dim3 grid(static_cast<unsigned>(blocks_of(p.x.channels)), static_cast<unsigned>(p.x.batch));
    return launch(forward_sliced_kernel<T>, grid, kThreads, SlicedShared<T>::bytes(parts), native, p);
  }
  bool all_aligned = p.x.vector && p.x.states == kStates && p.x.columns % 4 == 0;
  for (int r = 0; r < p.recurrences; ++r) all_aligned = all_aligned && aligned<16>(p.recurrence[r].dbc);
  const bool whole = p.x.tokens % kTile == 0;
  if (p.recurrences <= 1 + kNarrowSources<T> && narrow_pays(p.x.batch, p.x.channels)) {
    if (!all_aligned) return run_narrow<T, Fit::any>(native, p);
    return whole && p.x.channels % kNarrowChannels == 0 ? run_narrow<T, Fit::whole>(native, p)
                                                        : run_narrow<T, Fit::aligned>(native, p);
  }
  const std::int64_t tiles = pieces(p.x.tokens, kTile);
  p.tiles_a_segment = static_cast<int>(pieces(tiles, segments_of(p.x.batch, p.x.tokens, p.x.channels)));
  const auto segments = static_cast<int>(pieces(tiles, p.tiles_a_segment));
  if (segments > 1) lay_out_segments(p, native, segments);
  if (!all_aligned) {
    run_in_registers<T, Fit::any>(native, p, segments);
  } else if (whole && p.x.channels % kChannels == 0) {
    run_in_registers<T, Fit::whole>(native, p, segments);
  } else {
    run_in_registers<T, Fit::aligned>(native, p, segments);
  }
}

}  // namespace
}  // namespace forward
}  // namespace scan

void selective_scan_forward(Stream& stream, const ScanForwardArgs& args) {
  if (args.out.numel() == 0) return;
  with_compute_type(args.out.dtype(), [&](auto element) { scan::forward::run<decltype(element)>(native(stream), args); });
}

}  // namespace dm::cuda
