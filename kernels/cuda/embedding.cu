// The embedding on the GPU: forward copies rows; backward sorts the tokens by row and adds up each row's run of tokens.
//
// Backward, without atomics: (row, position) pairs are sorted by row (a stable radix sort, so positions stay in order), and
// the sorted list is cut into chunks of 32. A block adds up the runs of one chunk: a run that lies in the chunk goes to
// dtable, a run that reaches over an edge of it leaves a partial sum. A second kernel adds the partials of each such run,
// chunk after chunk. So a token that makes up 5 % of 65,536 is 103 chunks side by side and one sum of 103 numbers a column.
// dout is read once. All of it lies in the stream's workspace; more tokens than fit are taken in pieces, in order.
#include "kernels/embedding.h"

#include <cub/device/device_radix_sort.cuh>

#include <algorithm>
#include <bit>

#include "kernels/cuda/common.cuh"

namespace dm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 32;       // sorted tokens a block adds up
constexpr int kRunThreads = 64;  // of these blocks: 256 columns where a thread has four
constexpr int kBatch = 4;        // rows of dout in flight, and as many of dtable

/// A block copies one row: many of them a multiprocessor wait for a row anywhere in the table. Rows of other ranks are zero.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    lookup(const std::int32_t* __restrict__ tokens, const T* __restrict__ table, std::int64_t first_row,
           std::int64_t table_rows, std::int64_t C, float* __restrict__ out) {
  const std::int64_t row = tokens[blockIdx.x] - first_row;
  const bool here = row >= 0 && row < table_rows;
  for (std::int64_t c = threadIdx.x * kWidth; c < C; c += std::int64_t{blockDim.x} * kWidth) {
    float x[kWidth] = {};
    if constexpr (kWidth > 1) {
      if (here) unpack(load_packed<kWidth>(table + row * C + c), x);
    } else {
      if (here) x[0] = to_float(table[row * C + c]);
    }
    store_packed(out + blockIdx.x * C + c, x);
  }
}

/// keys[i] = the token's row, or table_rows (sorted last) when another rank has it; positions[i] = i.
__global__ void __launch_bounds__(kThreads)
    make_pairs(const std::int32_t* tokens, int count, std::int64_t first_row, std::int64_t table_rows, std::uint32_t* keys,
               std::uint32_t* positions) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  const std::int64_t row = tokens[i] - first_row;
  keys[i] = static_cast<std::uint32_t>(row >= 0 && row < table_rows ? row : table_rows);
  positions[i] = static_cast<std::uint32_t>(i);
}

/// The sorted pairs; keys from `none` on are no rows of this rank.
struct Sorted {
  const std::uint32_t* keys;
  const std::uint32_t* positions;
  int count;
  std::uint32_t none;

  __device__ bool same_run(int a, int b) const { return a >= 0 && b < count && keys[a] == keys[b]; }
};

template <int kWidth>
struct alignas(4 * kWidth) Columns {
  float values[kWidth];

  __device__ void add(const Columns& other) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) values[k] += other.values[k];
  }
};

template <int kWidth>
__device__ inline Columns<kWidth>& columns_at(float* base, std::int64_t row, int C, int column) {
  return *reinterpret_cast<Columns<kWidth>*>(base + row * C + column);
}

/// Grid: chunks, tiles of columns. partials [chunks, 2, C]: of the run that reaches into the chunk, and of the one that
/// begins in it and reaches out of it. A run through the whole chunk is of the first kind. A row of dtable is that of one
/// run alone: the rows that a batch adds to are on their way together with its rows of dout.
template <int kWidth>
__global__ void __launch_bounds__(kRunThreads) add_runs(Sorted sorted, const float* __restrict__ dout, int C,
                                                        float* __restrict__ partials, float* __restrict__ dtable) {
  const int column = (blockIdx.y * kRunThreads + threadIdx.x) * kWidth;
  const int begin = blockIdx.x * kChunk, end = min(begin + kChunk, sorted.count);
  if (column >= C) return;
  bool reaches_in = sorted.same_run(begin - 1, begin);
  Columns<kWidth> sum = {};
  for (int batch = begin; batch < end; batch += kBatch) {
    std::uint32_t keys[kBatch + 1], positions[kBatch];
    Columns<kWidth> rows[kBatch], before[kBatch];  // of dout, and of dtable where a run ends
#pragma unroll
    for (int b = 0; b <= kBatch; ++b) keys[b] = batch + b < sorted.count ? sorted.keys[batch + b] : sorted.none;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) positions[b] = batch + b < end ? sorted.positions[batch + b] : 0;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (batch + b >= end || keys[b] == sorted.none) continue;
      rows[b] = *reinterpret_cast<const Columns<kWidth>*>(dout + std::int64_t{positions[b]} * C + column);
      if (keys[b + 1] != keys[b]) before[b] = columns_at<kWidth>(dtable, keys[b], C, column);
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (batch + b >= end || keys[b] == sorted.none) return;
      sum.add(rows[b]);
      const bool goes_on = keys[b + 1] == keys[b], last = batch + b + 1 == end;
      if (goes_on && !last) continue;
      if (reaches_in) {
        columns_at<kWidth>(partials, std::int64_t{blockIdx.x} * 2, C, column) = sum;
      } else if (goes_on) {
        columns_at<kWidth>(partials, std::int64_t{blockIdx.x} * 2 + 1, C, column) = sum;
      } else {
        sum.add(before[b]);
        columns_at<kWidth>(dtable, keys[b], C, column) = sum;
      }
      reaches_in = false;
      sum = {};
    }
  }
}

/// Grid: chunks, tiles of columns. The block of the chunk in which a run begins adds all of the run's partials.
template <int kWidth>
__global__ void __launch_bounds__(kRunThreads)
    join_runs(Sorted sorted, int C, const float* __restrict__ partials, float* __restrict__ dtable) {
  const int column = (blockIdx.y * kRunThreads + threadIdx.x) * kWidth;
  const int begin = blockIdx.x * kChunk, last = begin + kChunk - 1;
  if (column >= C || !sorted.same_run(last, last + 1)) return;  // nothing reaches out of this chunk
  const std::uint32_t key = sorted.keys[last];
  if (key == sorted.none) return;
  if (sorted.keys[begin] == key && sorted.same_run(begin - 1, begin)) return;  // it began further down
  int low = last + 1, high = sorted.count;                                     // the run's end lies in (low, high]
  while (low + 1 < high) {
    const int middle = low + (high - low) / 2;
    (sorted.keys[middle] == key ? low : high) = middle;
  }
  const auto partial = [&](std::int64_t row) {
    return *reinterpret_cast<const Columns<kWidth>*>(partials + row * C + column);
  };
  Columns<kWidth> sum = partial(std::int64_t{blockIdx.x} * 2 + 1);
#pragma unroll 8
  for (int chunk = blockIdx.x + 1; chunk <= low / kChunk; ++chunk) sum.add(partial(std::int64_t{chunk} * 2));
  Columns<kWidth>& to = columns_at<kWidth>(dtable, key, C, column);  // one load and one store
  sum.add(to);
  to = sum;
}

/// The workspace of one piece of tokens.
struct Workspace {
  std::uint32_t *keys, *sorted_keys, *positions, *sorted_positions;
  float* partials;
  void* sort_memory;
  std::size_t sort_bytes;
};

constexpr std::size_t kSortMemory = std::size_t{2} << 20;

/// Keys and positions, before and after the sort, and the sort's own second copy of both.
constexpr std::int64_t kWordsAToken = 6;

/// Tokens a piece: as many as the workspace holds beside the memory of the sort.
std::int64_t piece_tokens(const NativeStream& native, std::int64_t count, std::int64_t C) {
  const std::int64_t room = static_cast<std::int64_t>(native.workspace_bytes - kSortMemory);
  const std::int64_t chunk_bytes = kChunk * kWordsAToken * static_cast<std::int64_t>(sizeof(std::uint32_t)) + 2 * C * 4;
  const std::int64_t most = room / chunk_bytes * kChunk;
  require(most > 0, "embedding_backward: rows are too wide for the workspace");
  return std::min(count, most);
}

Workspace cut(const NativeStream& native, std::int64_t piece, std::int64_t C) {
  const std::int64_t padded = std::int64_t{ceil_div(piece, kChunk)} * kChunk;
  auto* words = static_cast<std::uint32_t*>(native.workspace);
  auto* partials = reinterpret_cast<float*>(words + 4 * padded);
  auto* sort_memory = reinterpret_cast<char*>(partials + padded / kChunk * 2 * C);
  sort_memory += -reinterpret_cast<std::uintptr_t>(sort_memory) % 256;
  const std::size_t sort_bytes =
      native.workspace_bytes - static_cast<std::size_t>(sort_memory - static_cast<char*>(native.workspace));
  return {words, words + padded, words + 2 * padded, words + 3 * padded, partials, sort_memory, sort_bytes};
}

void sort_pairs(const NativeStream& native, const Workspace& space, int count, std::int64_t table_rows) {
  const int bits = std::bit_width(static_cast<std::uint64_t>(table_rows));
  std::size_t needed = 0;
  const auto sort = [&](void* memory) {
    CUDA_CHECK(cub::DeviceRadixSort::SortPairs(memory, needed, space.keys, space.sorted_keys, space.positions,
                                               space.sorted_positions, count, 0, bits, native.stream));
  };
  sort(nullptr);
  require(needed <= space.sort_bytes, "embedding_backward: the workspace is too small for the sort");
  sort(space.sort_memory);
}

template <int kWidth>
void add_piece(const NativeStream& native, const Workspace& space, const Sorted& sorted, const float* dout, int C,
               float* dtable) {
  const dim3 grid(static_cast<unsigned>(ceil_div(sorted.count, kChunk)),
                  static_cast<unsigned>(ceil_div(C, kRunThreads * kWidth)));
  add_runs<kWidth><<<grid, kRunThreads, 0, native.stream>>>(sorted, dout, C, space.partials, dtable);
  CUDA_CHECK(cudaGetLastError());
  join_runs<kWidth><<<grid, kRunThreads, 0, native.stream>>>(sorted, C, space.partials, dtable);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void embedding_forward(Stream& stream, const Tensor& tokens, const Tensor& table, std::int64_t first_row,
                       const Tensor& out) {
  const NativeStream& native = cuda::native(stream);
  const std::int64_t count = tokens.numel(), C = table.size(1);
  if (count == 0 || C == 0) return;
  with_compute_type(table.dtype(), [&](auto element) {
    using T = decltype(element);
    const bool wide = C % kVector == 0 && aligned<16>(pointer<T>(table), out.as<float>());
    const auto kernel = wide ? lookup<T, kVector> : lookup<T, 1>;
    const std::int64_t columns = wide ? C / kVector : C;
    const int threads = static_cast<int>(std::min<std::int64_t>((columns + 31) / 32 * 32, kThreads));
    kernel<<<static_cast<unsigned>(count), threads, 0, native.stream>>>(tokens.as<std::int32_t>(), pointer<const T>(table),
                                                                        first_row, table.size(0), C, out.as<float>());
    CUDA_CHECK(cudaGetLastError());
  });
}

void embedding_backward(Stream& stream, const Tensor& tokens, const Tensor& dout, std::int64_t first_row,
                        const Tensor& dtable) {
  const NativeStream& native = cuda::native(stream);
  const std::int64_t count = tokens.numel(), C = dtable.size(1), rows = dtable.size(0);
  if (count == 0 || dtable.numel() == 0) return;
  const std::int64_t piece = piece_tokens(native, count, C);
  const Workspace space = cut(native, piece, C);
  const bool wide = C % 4 == 0 && aligned<16>(dout.as<float>(), dtable.as<float>());
  for (std::int64_t begin = 0; begin < count; begin += piece) {
    const int size = static_cast<int>(std::min(piece, count - begin));
    make_pairs<<<ceil_div(size, kThreads), kThreads, 0, native.stream>>>(tokens.as<std::int32_t>() + begin, size, first_row,
                                                                         rows, space.keys, space.positions);
    CUDA_CHECK(cudaGetLastError());
    sort_pairs(native, space, size, rows);
    const Sorted sorted{space.sorted_keys, space.sorted_positions, size, static_cast<std::uint32_t>(rows)};
    const auto add = wide ? add_piece<4> : add_piece<1>;
    add(native, space, sorted, dout.as<float>() + begin * C, static_cast<int>(C), dtable.as<float>());
  }
}

}  // namespace dm::cuda
