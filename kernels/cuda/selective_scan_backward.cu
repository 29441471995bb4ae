// The selective scan backward on the GPU: a block walks 64 channels of one sequence from the last token to the first.
//
// Tiles of eight steps: elementwise part; forward again from the tile's saved state, which leaves exp(ΔA) and exp(ΔA) h of
// the tile in registers; then the adjoint recurrence from the tile's end, and what is elementwise again. A warp's 16
// channels are its own, also those of the rows that it copies; what warps share, B and C and sums of B̄ and C̄, comes and goes
// so early and late that one may be a tile ahead of another. Two warps are all that a scheduler has registers for, so
// what waits for different units stands side by side: a tile is finished while the next one is prepared, and what is done
// for others fills the steps' waits for exponentials (scan_backward_beside.cuh). Tensor cores form rank-one terms and sums
// (scan_backward_tile.cuh), so that a state-step costs six FP32 instructions, one ex2, 1.1 products, 1.5 instructions that
// bring states into their order and 0.4 loads: 12 of the 17 that are issued.
//
// Partial sums over a block's 64 channels (B̄, C̄; in bfloat16 with 12 bits, scan_backward_common.cuh) and over time (Ā, D̄,
// dt_bias) go to scratch; reduce kernels add them in a fixed order. More than 16 states: a launch for each slice of 16, with
// the sums over states of the slices before in planes of scratch. Before all this: scan_reader.cuh where there are sources,
// scan_adjoint.cuh where time is cut into segments.
#include <string>

#include "kernels/cuda/scan_backward_beside.cuh"
#include "kernels/cuda/scan_backward_walk.cuh"
#include "kernels/cuda/scan_reader.cuh"

namespace dm::cuda {
namespace scan::backward {
namespace {

/// More than 16 states: adds the sums over states of the slices before, kept in planes, and keeps them there for the next.
template <class T>
__device__ void add_slices(const MainParams<T>& p, const std::int64_t (&at)[2], const bool (&inside)[2][2],
                           Elements& readout, Walked<T>& own) {
  const std::int64_t all = p.x.sequence(p.x.batch);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if (!inside[i][c]) continue;
      float* planes = p.planes + at[i] + c;
      float* const sums[3] = {&readout[i][c], &own.dinput[i][c], &own.dexponent[i][c]};
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        if (p.slice > 0) *sums[k] += planes[k * all];
        if (p.slice < p.x.slices - 1) planes[k * all] = *sums[k];
      }
    }
  }
}

/// Where a lane's elements of a tile go, and which are inside.
struct Places {
  std::int64_t at[2], at_dz[2];
  bool inside[2][2];

  __device__ Places(Fit fit, const Extents& x, const OutCursor& cursor, int tile, const Lane& lane, bool walked) {
    const std::int64_t first = cursor.at + static_cast<std::int64_t>(tile) * (kTile * x.channels);
    const std::int64_t first_dz = cursor.at_dz + static_cast<std::int64_t>(tile) * (kTile * x.dz_stride);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      at[i] = first + i * x.channels, at_dz[i] = first_dz + i * x.dz_stride;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        inside[i][c] = walked && (fit == Fit::whole ||
                                  (tile * kTile + 2 * lane.quad + i < x.tokens && channel_of(lane) + c < x.channels));
      }
    }
  }
};

/// What is elementwise after the sums over states: out, dz, du and ddt.
template <bool kGated, class T>
__device__ void finish_elements(MainShared<T>& s, const Lane& lane, const Elements& readout, const Walked<T>& own,
                                Elements (&outputs)[4]) {
  const typename MainShared<T>::Warp& warp = s.warp[lane.warp];
  const int kept = threadIdx.x % 32;
  auto& [gating, dz_factor, du, ddt] = outputs;
  Elements delta, slope, dy, u, gated;
  float4 totals = s.totals[threadIdx.x];
  float* const dskip[2] = {&totals.x, &totals.y};
  float* const dbias[2] = {&totals.z, &totals.w};
  const float2 skips = *reinterpret_cast<const float2*>(&s.vectors[threadIdx.x]);
  const float skip[2] = {skips.x, skips.y};
  warp.delta.load(lane, lane.quad, delta);
  elements_of(warp.slope[kept], slope), elements_of(warp.dz_factor[kept], dz_factor);
  elements_of(warp.gating[kept], gating), elements_of(warp.dy_kept[kept], dy);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    load2(own.u[i].at, u[i]);
    if constexpr (kGated) load2(own.gated[i].at, gated[i]);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      ddt[i][c] = (own.dexponent[i][c] * kLn2 + u[i][c] * own.dinput[i][c]) * slope[i][c];
      *dbias[c] += ddt[i][c];
      *dskip[c] += dy[i][c] * u[i][c];
      du[i][c] = skip[c] * dy[i][c] + delta[i][c] * own.dinput[i][c];
      float y = readout[i][c] + skip[c] * u[i][c];
      if constexpr (kGated) y += gated[i][c];
      dz_factor[i][c] *= y, gating[i][c] *= y;
    }
  }
  s.totals[threadIdx.x] = totals;
}
/// A tile's outputs; nothing is stored unless it was walked.
template <Fit kFit, bool kGated, class T>
__device__ void finish(const MainParams<T>& p, MainShared<T>& s, int tile, const Lane& lane, bool walked, Walked<T>& own) {
  const Extents& x = p.x;
  const Places places(kFit, x, s.out_cursor[threadIdx.x], tile, lane, walked);
  Elements readout, outputs[4];
  elements_of(s.warp[lane.warp].readout[threadIdx.x % 32], readout);
  if (kFit == Fit::any && x.slices > 1) add_slices(p, places.at, places.inside, readout, own);
  if (kFit == Fit::any && p.slice < x.slices - 1) return;
  finish_elements<kGated>(s, lane, readout, own, outputs);
#pragma unroll
  for (int i = 0; i < 2; ++i) {  // out first: where there is none it is du
    store_pair<(kFit != Fit::any)>(p.out + places.at[i], places.inside[i], outputs[0][i]);
    store_pair<(kFit != Fit::any)>(p.dz + places.at_dz[i], places.inside[i], outputs[1][i]);
    store_pair<(kFit != Fit::any)>(p.du + places.at[i], places.inside[i], outputs[2][i]);
    store_pair<(kFit != Fit::any)>(p.ddt + places.at[i], places.inside[i], outputs[3][i]);
  }
}

template <class T>
__device__ void begin_outputs(const MainParams<T>& p, MainShared<T>& s, const Lane& lane) {
  const Extents& x = p.x;
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.y) * x.tokens + 2 * lane.quad;
  s.totals[threadIdx.x] = {};
  s.warp[lane.warp].slope[threadIdx.x % 32] = s.warp[lane.warp].dy_kept[threadIdx.x % 32] = {};  // of no tile
  for (float4(&drate)[32] : s.warp[lane.warp].drate) drate[threadIdx.x % 32] = {};
  s.warp[lane.warp].input.begin(), s.warp[lane.warp].dy.begin();
  s.out_cursor[threadIdx.x] = {row * x.channels + channel_of(lane), row * x.dz_stride + channel_of(lane)};
  const int pair = threadIdx.x / 32, kind = threadIdx.x / kStates % 2, n = threadIdx.x % kStates;
  const std::int64_t tiles = (static_cast<std::int64_t>(blockIdx.x) * x.batch + blockIdx.y) * x.saved;
  s.column_sums[threadIdx.x] = {(tiles * x.slices + p.slice) * kColumnPairs + threadIdx.x,
                                kind * static_cast<int>(sizeof(ColumnSums) / 4) + ColumnSums::place(n, pair),
                                ColumnSums::place(2 * lane.pair, lane.quad)};
  float vectors[4] = {};
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int channel = channel_of(lane) + c;
    if (channel < x.channels) vectors[c] = p.skip[channel], vectors[2 + c] = p.own.dt_bias[channel];
  }
  store4(reinterpret_cast<float*>(&s.vectors[threadIdx.x]), vectors);
}

/// Sums over time of a walk.
template <class T>
__device__ void store_walk(const MainParams<T>& p, MainShared<T>& s, const Lane& lane) {
  const Extents& x = p.x;
  const std::int64_t walk = static_cast<std::int64_t>(blockIdx.y) * p.segments.count + blockIdx.z;
  const float4 totals = s.totals[threadIdx.x];
  float* vectors = p.vectors + walk * 2 * x.channels + channel_of(lane);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    float dskip = c == 0 ? totals.x : totals.y, dbias = c == 0 ? totals.z : totals.w;
#pragma unroll
    for (int mask = 1; mask < 4; mask *= 2) dskip += exchange(dskip, mask), dbias += exchange(dbias, mask);
    if (channel_of(lane) + c >= x.channels) continue;
    const std::int64_t row = (walk * x.slices + p.slice) * x.channels + channel_of(lane) + c;
    const float4(*kept)[32] = s.warp[lane.warp].drate;
    const float* halves[2] = {reinterpret_cast<const float*>(&kept[0][threadIdx.x % 32]),
                              reinterpret_cast<const float*>(&kept[1][threadIdx.x % 32])};
    const float drate[4] = {halves[0][2 * c], halves[1][2 * c], halves[0][2 * c + 1], halves[1][2 * c + 1]};
    store4(p.rates + row * kStates + lane.state(), drate);
    if (p.slice == x.slices - 1 && lane.quad == 0) vectors[c] = dskip, vectors[x.channels + c] = dbias;
  }
}

/// The block's part of B̄ and C̄ of a tile.
template <class T>
__device__ void store_columns(const MainParams<T>& p, const MainShared<T>& s, int tile, int end) {
  ColumnPart<T> part;
  part.load(p, s, p.x.slices, tile, end);
  part.store();
}

/// kReaders at most, but at least one, or -1 for any number; 0: no sources either.
template <class T, int kReaders, Fit kFit>
__global__ void __launch_bounds__(kThreads, 2) main_kernel(const __grid_constant__ MainParams<T> p) {
  using Shared = MainShared<T>;
  // A tile is finished beside the next one's preparation; float32 has no registers for that.
  constexpr bool kBeside = kFit != Fit::any && !Shared::kExact;
  // Warps copy rows of their own channels, so that they need not meet: they may be a tile apart.
  constexpr bool kApart = kBeside && kReaders >= 0;
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  Shared& s = *reinterpret_cast<Shared*>(shared_bytes);
  const int readers = kReaders == 0 ? 0 : p.readers;
  const Lane lane = kBeside ? Lane::in_registers() : Lane();
  Walker walker(p, lane);
  const Fetch<T> fetch{p, s, readers};
  fetch.begin();
  if (threadIdx.x == 0) s.begun.start(kWarps);
  begin_outputs(p, s, lane);

  const int tiles = (p.x.tokens + kTile - 1) / kTile, begin = static_cast<int>(blockIdx.z) * p.tiles_a_segment;
  const int end = min(begin + p.tiles_a_segment, tiles);
  Walked<T> walked;
  fetch.columns(end - 1);
  wait_for_copies();
  __syncthreads();
  fetch.rows(end - 1);
  if (end - 1 > begin) fetch.columns(end - 2);
  fetch.cut(end - 1);
  end_group();
  bool all_began = true;
  for (int tile = end - 1; tile >= begin; --tile) {
    if constexpr (kApart) {
      wait_for_groups();
      __syncwarp();
      // Until all have begun the tile walked last: they have left their sums of the one before it, and it came with B and C
      // of this one.
      if (!all_began) s.begun.wait((end - tile) & 1);
      s.begun.arrive();
    } else {
      wait_for_copies();
      __syncthreads();
    }
    if constexpr (!kBeside) {
      store_columns(p, s, tile + 1, end);
      fetch.before(tile, begin);
    } else if constexpr (kReaders < 0) {
      fetch.dense_before(tile, begin);
    }
    const Inputs<T> inputs(s.rows[tile & 1].tensor, lane);
    if constexpr (kBeside) finish<kFit, kReaders != 0>(p, s, tile + 1, lane, tile + 1 < end, walked);
    prepare<T>(s.warp[lane.warp], inputs, s.vectors[threadIdx.x], lane);
#pragma unroll(kReaders > 0 ? kReaders : 1)
    for (int k = 0; k < (kReaders > 0 ? kReaders : readers); ++k) prepare_reader<T>(s.reader(k), tile, lane);
    __syncwarp();
    Tile own;
    std::conditional_t<kBeside, Beside<T, kReaders, kFit>, NothingBeside> beside(fetch, tile, begin, end);
    walk_forward(s, tile, walker, lane, own, s.sums[tile & (Shared::kSumTiles - 1)][lane.warp][1], beside);
    walk_backward<T, kReaders>(s, tile, readers, walker, lane, own, s.sums[tile & (Shared::kSumTiles - 1)][lane.warp][0]);
    if constexpr (kApart) all_began = beside.all_began();
    walked.keep(own, s.rows[tile & 1].tensor[0], s.rows[tile & 1].gated_readout, kReaders != 0 && p.gated_readout, lane);
    if constexpr (!kBeside) finish<kFit, kReaders != 0>(p, s, tile, lane, true, walked);
  }
  __syncthreads();
  if constexpr (kApart) store_columns(p, s, begin + 1, end);
  store_columns(p, s, begin, end);
  if constexpr (kBeside) finish<kFit, kReaders != 0>(p, s, begin, lane, true, walked);
  store_walk(p, s, lane);
}

/// ddbc's B and C columns: a thread sums one of them, of two tokens, over the blocks of channels, in their order.
/// [blocks, B, tiles, slices, 4, 32] pairs of tokens, [blocks, B·T, slices, 16] of sources.
template <class Pair, class Sum>
__global__ void __launch_bounds__(256)
    reduce_columns(Extents x, int blocks, const Pair* columns, const float* source_columns, Sum* ddbc) {
  const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t parts = static_cast<std::int64_t>(x.batch) * x.saved * x.slices, part = index / kColumnPairs;
  const int slice = static_cast<int>(part % x.slices), column = static_cast<int>(index % (2 * kStates));
  const int kind = column / kStates, n = slice * kStates + column % kStates;
  const int pair = static_cast<int>(index / (2 * kStates) % (kTile / 2));
  const std::int64_t tile = part / x.slices, b = tile / x.saved;
  const int token = static_cast<int>(tile % x.saved) * kTile + 2 * pair;
  if (part >= parts || n >= x.states) return;
  float sums[2] = {};
#pragma unroll 8
  for (int block = 0; block < blocks; ++block) {
    const float2 add = unpack_pair(columns[block * (parts * kColumnPairs) + index]);
    sums[0] += add.x, sums[1] += add.y;
  }
  const bool both = token + 1 < x.tokens;
  const std::int64_t row = b * x.tokens + token;
  if (token >= x.tokens) return;
  if (kind == 1 && source_columns) {
    const std::int64_t width = x.slices * kStates, all = static_cast<std::int64_t>(x.batch) * x.tokens * width;
    const float* first = source_columns + row * width + slice * kStates + column % kStates;
    const float* second = first + (both ? width : 0);
#pragma unroll 8
    for (int block = 0; block < blocks; ++block) sums[0] += first[block * all], sums[1] += second[block * all];
  }
  Sum* to = ddbc + row * x.columns + x.columns - 2 * x.states + kind * x.states + n;
  to[0] = from_float<Sum>(sums[0]);
  if (both) to[x.columns] = from_float<Sum>(sums[1]);
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
  if (shared > kMaxShared) {
    fail("a GPU has no shared memory for a selective scan's backward with more than " +
         std::to_string(MainShared<T>::most_readers()) + " readers (layers above that read a layer's states)");
  }
  constexpr int kFew = MainShared<T>::kFew;
  constexpr Fit kWhole = MainShared<T>::kExact ? Fit::aligned : Fit::whole;
  const bool alone = p.readers == 0 && !p.gated_readout, few = p.readers > 0 && p.readers <= kFew;
  const bool aligned = p.x.vector && p.x.vector_columns && p.x.slices == 1;
  const bool whole = aligned && p.x.tokens % kTile == 0 && p.x.channels % kChannels == 0;
  const auto kernel = whole && alone     ? main_kernel<T, 0, kWhole>
                      : whole && few     ? main_kernel<T, kFew, kWhole>
                      : aligned && alone ? main_kernel<T, 0, Fit::aligned>
                      : aligned && few   ? main_kernel<T, kFew, Fit::aligned>
                      : aligned          ? main_kernel<T, -1, Fit::aligned>
                      : alone            ? main_kernel<T, 0, Fit::any>
                      : few              ? main_kernel<T, kFew, Fit::any>
                                         : main_kernel<T, -1, Fit::any>;
  launch(kernel, grid, kThreads, shared, native, p);
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
  p.out = args.out ? pointer<T>(args.out) : p.du;
  p.columns = scratch + layout.columns, p.rates = scratch + layout.rates, p.vectors = scratch + layout.vectors;
  p.planes = scratch + layout.planes;
  const std::int64_t tiles = pieces(x.tokens, kTile);
  const std::int64_t segments = segments_of(x.batch, x.tokens, x.channels);
  const std::int64_t each = pieces_of(x.batch, x.tokens, x.channels);
  p.tiles_a_piece = static_cast<int>(pieces(tiles, segments * each));
  p.tiles_a_segment = p.tiles_a_piece * static_cast<int>(each);
  p.segments = {scratch + layout.carries, nullptr, static_cast<int>(pieces(tiles, p.tiles_a_segment))};
  p.pieces = {scratch + layout.ends, scratch + layout.sums, static_cast<int>(pieces(tiles, p.tiles_a_piece)),
              static_cast<int>(each)};
  if (p.segments.count > 1) run_segments(native, p);
  for (p.slice = 0; p.slice < x.slices; ++p.slice) run_main(native, p);

  const std::int64_t columns = static_cast<std::int64_t>(x.batch) * x.saved * x.slices * kColumnPairs;
  with_compute_type(args.ddbc.dtype(), [&](auto sum) {
    using Sum = decltype(sum);
    reduce_columns<<<ceil_div(columns, 256), 256, 0, native.stream>>>(
        x, static_cast<int>(blocks_of(x.channels)), reinterpret_cast<const TokenPair<T>*>(p.columns),
        dense ? scratch + layout.source_columns : nullptr, pointer<Sum>(args.ddbc));
    CUDA_CHECK(cudaGetLastError());
  });
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
