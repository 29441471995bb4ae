// Other ranks' memory is mapped by CUDA's interprocess handles. A collective is a meeting (all tensors are ready), copies
// from the others, and a meeting (all have been read). A sending is copies to the others and a meeting (all have arrived).
// In a meeting the GPU's front end, not a kernel, which would wait for a multiprocessor, writes a one to every other rank's
// board, waits for theirs on its own, and clears them. Each kind has a place on the boards: a rank that is a meeting ahead,
// which is as far as it gets, then never writes where another is yet to clear: two in a row are of different kinds.
// Sums of collectives come through a staging area, a piece at a time. Boards and staging area are the workspace.
#include "parallel/cuda/peer_copies.h"

#include <cuda.h>
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "runtime/cuda/native_stream.h"
#include "runtime/host.h"

namespace dm {
namespace {

constexpr int kMaxRanks = 32;
constexpr std::int64_t kBoardBytes = 1024;  // [meeting, kMaxRanks] unsigned, written by the others
constexpr int kThreads = 256;

enum Meeting : int { kEntry, kExit, kParts, kWhole, kOwn, kMeetings };
static_assert(kMeetings * kMaxRanks * sizeof(unsigned) <= kBoardBytes);

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

/// An allocation that all ranks have, of the same size, as this process sees each.
struct Region {
  std::int64_t bytes = 0;
  char* of[kMaxRanks] = {};
};

/// What a rank tells the others of an allocation.
struct Handle {
  cudaIpcMemHandle_t memory;
  std::int64_t bytes;
  char host[256];
};

/// Collective over `host`: false on a rank that cannot reach all others'.
bool map(Communicator& host, const Buffer& memory, Region& region) {
  std::vector<Handle> all(static_cast<std::size_t>(host.size()));
  Handle& mine = all[static_cast<std::size_t>(host.rank())];
  mine.bytes = region.bytes = memory.bytes();
  region.of[host.rank()] = static_cast<char*>(memory.data());
  std::strncpy(mine.host, host_name().c_str(), sizeof mine.host - 1);
  const bool exported = cudaIpcGetMemHandle(&mine.memory, memory.data()) == cudaSuccess;
  cudaGetLastError();
  if (!exported) mine.bytes = 0;  // as nobody else's
  Stream stream(Device::cpu());
  const auto size = static_cast<std::int64_t>(sizeof(Handle));
  const Tensor bytes = Tensor::of(reinterpret_cast<std::uint8_t*>(all.data()), {host.size(), size});
  host.all_gather(stream, bytes.slice(host.rank(), 1), bytes);
  for (int r = 0; r < host.size(); ++r) {
    const Handle& theirs = all[static_cast<std::size_t>(r)];
    if (r == host.rank()) continue;
    if (theirs.bytes != mine.bytes || std::strcmp(theirs.host, mine.host) != 0) return false;
    region.of[r] = open_handle(theirs.memory);
    if (!region.of[r]) return false;
  }
  return exported;
}

}  // namespace

struct PeerCopies::Mapped {
  int rank = 0, ranks = 1;
  std::vector<Region> memories;
  Region workspace;  // boards, then the staging area
  decltype(batch_operations()) batch = batch_operations();

  ~Mapped() {
    memories.push_back(workspace);
    for (const Region& region : memories) {
      for (int r = 0; r < ranks; ++r) {
        if (r != rank && region.of[r]) cudaIpcCloseMemHandle(region.of[r]);
      }
    }
  }

  char* staging() const { return workspace.of[rank] + kBoardBytes; }
  std::int64_t staging_bytes() const { return workspace.bytes - kBoardBytes; }

  /// The memory that `tensor` lies in, or null.
  const Region* region_of(const Tensor& tensor) const {
    const auto* data = static_cast<const char*>(tensor.data());
    const auto holds = [&](const Region& region) {
      return data >= region.of[rank] && data + tensor.bytes() <= region.of[rank] + region.bytes;
    };
    const auto at = std::find_if(memories.begin(), memories.end(), holds);
    return at == memories.end() ? nullptr : &*at;
  }
  /// Where rank `r` has what this rank has in `mine`.
  char* theirs(int r, const Tensor& mine) const {
    const Region& region = *region_of(mine);
    return region.of[r] + (static_cast<const char*>(mine.data()) - region.of[rank]);
  }

  /// `from` of this rank to where rank `r` has what is `to` here.
  void send(const cuda::NativeStream& native, int r, const Tensor& from, const Tensor& to) const {
    CUDA_CHECK(cudaMemcpyAsync(theirs(r, to), from.data(), static_cast<std::size_t>(from.bytes()), cudaMemcpyDeviceToDevice,
                               native.stream));
  }

  void meet(const cuda::NativeStream& native, Meeting meeting) const {
    std::vector<CUstreamBatchMemOpParams> operations;
    const auto add = [&](CUstreamBatchMemOpType type, int board, int writer, unsigned value) {
      CUstreamBatchMemOpParams operation{};
      const unsigned* at = reinterpret_cast<unsigned*>(workspace.of[board]) + meeting * kMaxRanks + writer;
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
};

PeerCopies::PeerCopies(std::unique_ptr<Mapped> mapped) : mapped_(std::move(mapped)) {}
PeerCopies::~PeerCopies() = default;

std::unique_ptr<PeerCopies> PeerCopies::open(Communicator& host, const std::vector<const Buffer*>& memories,
                                             const Buffer& workspace) {
  if (host.size() > kMaxRanks) return nullptr;
  require(workspace.bytes() > kBoardBytes && workspace.bytes() % 16 == 0, "a workspace of kSharingBytes");
  CUDA_CHECK(cudaSetDevice(workspace.device().index));
  auto mapped = std::make_unique<Mapped>();
  mapped->rank = host.rank(), mapped->ranks = host.size();
  mapped->memories.resize(memories.size());
  std::int32_t missing = !map(host, workspace, mapped->workspace);
  for (std::size_t i = 0; i < memories.size(); ++i) {
    if (!map(host, *memories[i], mapped->memories[i])) missing = 1;
  }
  Stream stream(Device::cpu());
  host.all_reduce(stream, Tensor::of(&missing, {1}), ReduceOp::max);
  if (missing != 0) return nullptr;
  return std::unique_ptr<PeerCopies>(new PeerCopies(std::move(mapped)));
}

bool PeerCopies::takes(const Tensor& tensor) const {
  return (tensor.dtype() == DType::f32 || tensor.dtype() == DType::bf16) && mapped_->region_of(tensor) &&
         reinterpret_cast<std::uintptr_t>(tensor.data()) % 16 == 0;
}

void PeerCopies::reduce_scatter(Stream& stream, const Tensor&, const Tensor& shard) {
  const cuda::NativeStream& native = cuda::native(stream);
  const Mapped& m = *mapped_;
  char* own = static_cast<char*>(shard.data());
  m.meet(native, kEntry);
  for (int step = 1; step < m.ranks; ++step) {
    const char* theirs = m.theirs((m.rank + step) % m.ranks, shard);
    for (std::int64_t begin = 0; begin < shard.bytes(); begin += m.staging_bytes()) {
      const std::int64_t bytes = std::min(m.staging_bytes(), shard.bytes() - begin), n = bytes / 16;
      CUDA_CHECK(cudaMemcpyAsync(m.staging(), theirs + begin, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice,
                                 native.stream));
      const auto blocks =
          static_cast<unsigned>(std::min<std::int64_t>((n + kThreads - 1) / kThreads, 4 * native.multiprocessors));
      if (shard.dtype() == DType::f32) {
        add<<<blocks, kThreads, 0, native.stream>>>(reinterpret_cast<const float4*>(m.staging()),
                                                    reinterpret_cast<float4*>(own + begin), n);
      } else {
        add<<<blocks, kThreads, 0, native.stream>>>(reinterpret_cast<const uint4*>(m.staging()),
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
    const Tensor part = full.flat(peer * shard.numel(), shard.numel());
    CUDA_CHECK(cudaMemcpyAsync(part.data(), m.theirs(peer, part), static_cast<std::size_t>(part.bytes()),
                               cudaMemcpyDeviceToDevice, native.stream));
  }
  m.meet(native, kExit);
}

void PeerCopies::send_parts(Stream& stream, std::span<const Tensor> fulls, std::span<const Tensor> inboxes) {
  const Mapped& m = *mapped_;
  for (std::size_t i = 0; i < fulls.size(); ++i) {
    const std::int64_t n = fulls[i].numel() / m.ranks;
    for (int step = 1; step < m.ranks; ++step) {  // to the rank that sees this one `ranks − step` ranks after itself
      const int peer = (m.rank + step) % m.ranks;
      m.send(cuda::native(stream), peer, fulls[i].flat(peer * n, n), inboxes[i].flat((m.ranks - step - 1) * n, n));
    }
  }
  m.meet(cuda::native(stream), kParts);
}

void PeerCopies::send_whole(Stream& stream, const Tensor& tensor, const Tensor& inbox) {
  mapped_->send(cuda::native(stream), 1 - mapped_->rank, tensor, inbox);
  mapped_->meet(cuda::native(stream), kWhole);
}

void PeerCopies::send_own(Stream& stream, std::span<const Tensor> fulls) {
  const Mapped& m = *mapped_;
  for (const Tensor& full : fulls) {
    const std::int64_t n = full.numel() / m.ranks;
    const Tensor own = full.flat(m.rank * n, n);
    for (int step = 1; step < m.ranks; ++step) m.send(cuda::native(stream), (m.rank + step) % m.ranks, own, own);
  }
  m.meet(cuda::native(stream), kOwn);
}

}  // namespace dm
