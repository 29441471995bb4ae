// NCCL without blocking calls: every call that may still be in progress is polled, so that a lost peer cannot hang the host.
#include "parallel/nccl_communicator.h"

#include <nccl.h>

#include <chrono>
#include <thread>

#include <fmt/format.h>

#include "parallel/cuda/peer_copies.h"
#include "runtime/cuda/native_stream.h"

namespace dm {
namespace {

void nccl_check(ncclResult_t result, std::string_view what, const std::string& group) {
  if (result == ncclSuccess) [[likely]]
    return;
  fail(fmt::format("NCCL: {} of group {}: {} ({})", what, group, ncclGetErrorString(result), ncclGetLastError(nullptr)),
       ExitCode::retryable);
}

ncclDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return ncclFloat32;
    case DType::bf16:
      return ncclBfloat16;
    case DType::i32:
      return ncclInt32;
    case DType::i64:
      return ncclInt64;
    case DType::u8:
      return ncclUint8;
  }
  fail("a type that NCCL does not know");
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(Communicator& host, Device device, std::string name, CollectiveObserver* observer,
                   double deadline_seconds)
      : Communicator(host.rank(), host.size(), std::move(name), observer) {
    CUDA_CHECK(cudaSetDevice(device.index));
    ncclUniqueId id{};
    if (rank() == 0) nccl_check(ncclGetUniqueId(&id), "unique id", this->name());
    Stream host_stream(Device::cpu());
    host.broadcast(host_stream, Tensor::of(reinterpret_cast<std::uint8_t*>(&id), {static_cast<std::int64_t>(sizeof id)}), 0);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const ncclResult_t started = ncclCommInitRankConfig(&comm_, size(), id, rank(), &config);
    if (started != ncclInProgress) nccl_check(started, "start", this->name());
    settle("start", deadline_seconds);
  }

  ~NcclCommunicator() override {
    if (comm_) ncclCommAbort(comm_);  // all work is done or lost: destroy would wait for peers
  }

  std::unique_ptr<Communicator> split(int, int, std::string) override {
    fail("NCCL groups are made from host groups (make_nccl_communicator), not split");
  }

  void abort(int exit_code) override { ::_exit(exit_code); }

  bool share(Communicator& host, const std::vector<const Buffer*>& memories, const Buffer& workspace) override {
    peers_ = PeerCopies::open(host, memories, workspace);
    return peers_ != nullptr;
  }

  bool sends(const Tensor& full) const override {
    return peers_ && full.bytes() >= kFewBytes && full.bytes() % (16 * size()) == 0 && peers_->takes(full) && !together_;
  }

 protected:
  void do_all_reduce(Stream& stream, const Tensor& tensor, ReduceOp op) override {
    if (op == ReduceOp::sum && tensor.numel() % size() == 0) {
      const std::int64_t n = tensor.numel() / size();
      const Tensor shard = tensor.flat(rank() * n, n);
      if (goes_directly(shard, tensor)) {
        peers_->reduce_scatter(stream, tensor, shard);
        return peers_->all_gather(stream, shard, tensor);
      }
    }
    finish(ncclAllReduce(tensor.data(), tensor.data(), count(tensor), type_of(tensor.dtype()),
                         op == ReduceOp::sum ? ncclSum : ncclMax, comm_, queue(stream)),
           "all_reduce");
  }
  void do_reduce_scatter(Stream& stream, const Tensor& full, const Tensor& shard) override {
    if (goes_directly(shard, full)) return peers_->reduce_scatter(stream, full, shard);
    finish(ncclReduceScatter(full.data(), shard.data(), count(shard), type_of(full.dtype()), ncclSum, comm_, queue(stream)),
           "reduce_scatter");
  }
  void do_all_gather(Stream& stream, const Tensor& shard, const Tensor& full) override {
    if (goes_directly(shard, full)) return peers_->all_gather(stream, shard, full);
    finish(ncclAllGather(shard.data(), full.data(), count(shard), type_of(full.dtype()), comm_, queue(stream)),
           "all_gather");
  }
  void do_broadcast(Stream& stream, const Tensor& tensor, int root) override {
    finish(ncclBroadcast(tensor.data(), tensor.data(), count(tensor), type_of(tensor.dtype()), root, comm_, queue(stream)),
           "broadcast");
  }
  void do_barrier(Stream&) override { fail("a barrier is for host groups; GPU work is ordered by streams"); }
  void do_send_parts(Stream& stream, std::span<const Tensor> fulls, std::span<const Tensor> inboxes) override {
    peers_->send_parts(stream, fulls, inboxes);
  }
  void do_send_whole(Stream& stream, const Tensor& tensor, const Tensor& inbox) override {
    peers_->send_whole(stream, tensor, inbox);
  }
  void do_send_own(Stream& stream, std::span<const Tensor> fulls) override { peers_->send_own(stream, fulls); }
  void begin_together() override {
    together_ = true;
    nccl_check(ncclGroupStart(), "group start", name());
  }
  void end_together() override {
    together_ = false;
    finish(ncclGroupEnd(), "group end");
  }

 private:
  /// Below this NCCL's one kernel is faster than meetings and copies.
  static constexpr std::int64_t kFewBytes = std::int64_t{1} << 20;

  bool goes_directly(const Tensor& shard, const Tensor& full) const {
    const auto* own = static_cast<const std::byte*>(full.data()) + rank() * shard.bytes();
    return shard.data() == own && sends(full);
  }
  static std::size_t count(const Tensor& tensor) { return static_cast<std::size_t>(tensor.numel()); }
  static cudaStream_t queue(Stream& stream) { return cuda::native(stream).stream; }

  void finish(ncclResult_t result, const char* what) {
    if (result == ncclInProgress) {
      if (!together_) settle(what, kNcclDeadlineSeconds);
      return;
    }
    nccl_check(result, what, name());
  }

  /// Polls until NCCL has taken the call in, or the deadline.
  void settle(const char* what, double deadline_seconds) {
    const double end = now_seconds() + deadline_seconds;
    ncclResult_t state = ncclInProgress;
    for (int round = 0; state == ncclInProgress; ++round) {
      nccl_check(ncclCommGetAsyncError(comm_, &state), what, name());
      if (state != ncclInProgress) break;
      if (now_seconds() > end) {
        fail(fmt::format("NCCL: {} of group {}: not all {} ranks were there after {:.0f} s", what, name(), size(),
                         deadline_seconds),
             ExitCode::retryable);
      }
      if (round > 1000) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    nccl_check(state, what, name());
  }

  ncclComm_t comm_ = nullptr;
  bool together_ = false;
  std::unique_ptr<PeerCopies> peers_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& host, Device device, std::string name,
                                                     CollectiveObserver* observer, double deadline_seconds) {
  return std::make_unique<NcclCommunicator>(host, device, std::move(name), observer, deadline_seconds);
}

}  // namespace dm
