// Other ranks' memory is mapped by CUDA's interprocess handles. A collective is a meeting (all tensors are ready), copies,
// and a meeting (all have been read). In a meeting the GPU's front end, not a kernel, which would wait for a multiprocessor,
// writes a one to every other rank's board, waits for theirs on its own, and clears them. Entry and exit have a place each
// on the boards: a rank that is a meeting ahead, which is as far as it gets, then never writes where another is yet to
// clear. Sums come through a staging area, a piece at a time.
#include "parallel/cuda/peer_copies.h"

#include <cuda.h>
#include <cuda_bf16.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "runtime/cuda/native_stream.h"
#include "runtime/host.h"

namespace dm {
namespace {

constexpr int kMaxRanks = 32;
constexpr std::int64_t kStagingBytes = std::int64_t{32} << 20;
constexpr int kThreads = 256;

enum Meeting : int { kEntry, kExit };

/// The driver's function, found at run time: the program also starts where there is no driver.
auto batch_operations() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  constexpr unsigned kSince = 12000;
  CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuStreamBatchMemOp", &function, kSince, cudaEnableDefault, &found));
  require(found == cudaDriverEntryPointSuccess, "the driver has no operations on memory in streams");
  return reinterpret_cast<CUresult (*)(CUstream, unsigned, CUstreamBatchMemOpParams*, unsigned)>(function);
}

__device__ inline float4 sum_of(float4 a, float4 b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
__device__ inline uint4 sum_of(uint4 a, uint4 b) {  // of eight bf16
  auto* x = reinterpret_cast<__nv_bfloat162*>(&a);
  const auto* y = reinterpret_cast<const __nv_bfloat162*>(&b);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 p = __bfloat1622float2(x[i]), q = __bfloat1622float2(y[i]);
    x[i] = __floats2bfloat162_rn(p.x + q.x, p.y + q.y);
  }
  return a;
}

/// to += from, 16 bytes a thread and turn.
template <class Vector>
__global__ void __launch_bounds__(kThreads) add(const Vector* from, Vector* to, std::int64_t n) {
  for (std::int64_t i = blockIdx.x * std::int64_t{kThreads} + threadIdx.x; i < n; i += gridDim.x * std::int64_t{kThreads}) {
    to[i] = sum_of(to[i], from[i]);
  }
}

/// An allocation of another process, or null.
char* open_handle(const cudaIpcMemHandle_t& handle) {
  void* data = nullptr;
  if (cudaIpcOpenMemHandle(&data, handle, cudaIpcMemLazyEnablePeerAccess) == cudaSuccess) return static_cast<char*>(data);
  cudaGetLastError();
  return nullptr;
}

/// What a rank tells the others of itself.
struct Handles {
  cudaIpcMemHandle_t memory, board;
  std::int64_t bytes;
  char host[256];
};

}  // namespace

struct PeerCopies::Mapped {
  int rank = 0, ranks = 1;
  std::int64_t bytes = 0;
  char* memory[kMaxRanks] = {};      // of each rank, as mapped here
  unsigned* boards[kMaxRanks] = {};  // of each rank: [meeting, kMaxRanks], written by the others
  char* staging = nullptr;
  decltype(batch_operations()) batch = batch_operations();

  ~Mapped() {
    for (int r = 0; r < ranks; ++r) {
      if (r == rank) continue;
      if (memory[r]) cudaIpcCloseMemHandle(memory[r]);
      if (boards[r]) cudaIpcCloseMemHandle(boards[r]);
    }
    cudaFree(boards[rank]);
    cudaFree(staging);
  }

  void meet(const cuda::NativeStream& native, Meeting meeting) const {
    std::vector<CUstreamBatchMemOpParams> operations;
    const auto add = [&](CUstreamBatchMemOpType type, int board, int writer, unsigned value) {
      CUstreamBatchMemOpParams operation{};
      const unsigned* at = boards[board] + meeting * kMaxRanks + writer;
      if (type == CU_STREAM_MEM_OP_WRITE_VALUE_32) {
        operation.writeValue.operation = type;
        operation.writeValue.address = reinterpret_cast<CUdeviceptr>(at);
        operation.writeValue.value = value;
      } else {
        operation.waitValue.operation = type;
        operation.waitValue.address = reinterpret_cast<CUdeviceptr>(at);
        operation.waitValue.value = value;
        operation.waitValue.flags = CU_STREAM_WAIT_VALUE_EQ;
      }
      operations.push_back(operation);
    };
    const auto each_other = [&](const auto& work) {
      for (int step = 1; step < ranks; ++step) work((rank + step) % ranks);
    };
    each_other([&](int r) { add(CU_STREAM_MEM_OP_WRITE_VALUE_32, r, rank, 1); });
    each_other([&](int r) { add(CU_STREAM_MEM_OP_WAIT_VALUE_32, rank, r, 1); });
    each_other([&](int r) { add(CU_STREAM_MEM_OP_WRITE_VALUE_32, rank, r, 0); });
    const CUresult result = batch(native.stream, static_cast<unsigned>(operations.size()), operations.data(), 0);
    require(result == CUDA_SUCCESS, "cuStreamBatchMemOp: a meeting of the ranks was refused");
  }
  const char* of(int r, const void* mine) const { return memory[r] + (static_cast<const char*>(mine) - memory[rank]); }
};

PeerCopies::PeerCopies(std::unique_ptr<Mapped> mapped) : mapped_(std::move(mapped)) {}
PeerCopies::~PeerCopies() = default;

std::unique_ptr<PeerCopies> PeerCopies::open(Communicator& host, const Buffer& memory) {
  if (host.size() > kMaxRanks) return nullptr;
  auto mapped = std::make_unique<Mapped>();
  mapped->rank = host.rank(), mapped->ranks = host.size(), mapped->bytes = memory.bytes();
  CUDA_CHECK(cudaSetDevice(memory.device().index));
  const auto allocate = [](auto*& pointer, std::int64_t bytes) {
    CUDA_CHECK(cudaMalloc(&pointer, static_cast<std::size_t>(bytes)));
    CUDA_CHECK(cudaMemset(pointer, 0, static_cast<std::size_t>(bytes)));
  };
  allocate(mapped->boards[mapped->rank], 2 * kMaxRanks * sizeof(unsigned));
  allocate(mapped->staging, kStagingBytes);
  CUDA_CHECK(cudaDeviceSynchronize());
  mapped->memory[mapped->rank] = static_cast<char*>(memory.data());

  std::vector<Handles> all(static_cast<std::size_t>(host.size()));
  Handles& mine = all[static_cast<std::size_t>(host.rank())];
  mine.bytes = memory.bytes();
  std::strncpy(mine.host, host_name().c_str(), sizeof mine.host - 1);
  std::int32_t reached = cudaIpcGetMemHandle(&mine.memory, memory.data()) == cudaSuccess &&
                         cudaIpcGetMemHandle(&mine.board, mapped->boards[mapped->rank]) == cudaSuccess;
  cudaGetLastError();
  Stream host_stream(Device::cpu());
  const auto size = static_cast<std::int64_t>(sizeof(Handles));
  const Tensor bytes = Tensor::of(reinterpret_cast<std::uint8_t*>(all.data()), {host.size(), size});
  host.all_gather(host_stream, bytes.slice(host.rank(), 1), bytes);
  for (int r = 0; r < host.size() && reached; ++r) {
    const Handles& theirs = all[static_cast<std::size_t>(r)];
    if (r == host.rank()) continue;
    reached = theirs.bytes == mine.bytes && std::strcmp(theirs.host, mine.host) == 0;
    if (!reached) break;
    mapped->memory[r] = open_handle(theirs.memory);
    mapped->boards[r] = reinterpret_cast<unsigned*>(open_handle(theirs.board));
    reached = mapped->memory[r] && mapped->boards[r];
  }
  std::int32_t missing = !reached;
  host.all_reduce(host_stream, Tensor::of(&missing, {1}), ReduceOp::max);
  if (missing != 0) return nullptr;
  return std::unique_ptr<PeerCopies>(new PeerCopies(std::move(mapped)));
}

bool PeerCopies::takes(const Tensor& tensor) const {
  const auto* data = static_cast<const char*>(tensor.data());
  const char* begin = mapped_->memory[mapped_->rank];
  return (tensor.dtype() == DType::f32 || tensor.dtype() == DType::bf16) && data >= begin &&
         data + tensor.bytes() <= begin + mapped_->bytes && (data - begin) % 16 == 0;
}

void PeerCopies::reduce_scatter(Stream& stream, const Tensor&, const Tensor& shard) {
  const cuda::NativeStream& native = cuda::native(stream);
  const Mapped& m = *mapped_;
  char* own = static_cast<char*>(shard.data());
  m.meet(native, kEntry);
  for (int step = 1; step < m.ranks; ++step) {
    const char* theirs = m.of((m.rank + step) % m.ranks, own);
    for (std::int64_t begin = 0; begin < shard.bytes(); begin += kStagingBytes) {
      const std::int64_t bytes = std::min(kStagingBytes, shard.bytes() - begin), n = bytes / 16;
      CUDA_CHECK(cudaMemcpyAsync(m.staging, theirs + begin, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice,
                                 native.stream));
      const auto blocks =
          static_cast<unsigned>(std::min<std::int64_t>((n + kThreads - 1) / kThreads, 4 * native.multiprocessors));
      if (shard.dtype() == DType::f32) {
        add<<<blocks, kThreads, 0, native.stream>>>(reinterpret_cast<const float4*>(m.staging),
                                                    reinterpret_cast<float4*>(own + begin), n);
      } else {
        add<<<blocks, kThreads, 0, native.stream>>>(reinterpret_cast<const uint4*>(m.staging),
                                                    reinterpret_cast<uint4*>(own + begin), n);
      }
      CUDA_CHECK(cudaGetLastError());
    }
  }
  m.meet(native, kExit);
}

void PeerCopies::all_gather(Stream& stream, const Tensor& shard, const Tensor& full) {
  const cuda::NativeStream& native = cuda::native(stream);
  const Mapped& m = *mapped_;
  m.meet(native, kEntry);
  for (int step = 1; step < m.ranks; ++step) {
    const int peer = (m.rank + step) % m.ranks;
    char* part = static_cast<char*>(full.data()) + peer * shard.bytes();
    CUDA_CHECK(cudaMemcpyAsync(part, m.of(peer, part), static_cast<std::size_t>(shard.bytes()), cudaMemcpyDeviceToDevice,
                               native.stream));
  }
  m.meet(native, kExit);
}

}  // namespace dm
