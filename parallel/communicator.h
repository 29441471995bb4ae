// Collectives over a fixed group of ranks: typed, stream-ordered, counted, and known to the watchdog.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/buffer.h"
#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

enum class ReduceOp : std::uint8_t { sum, max };

/// Told when this rank enters and leaves a collective: `op` is "all_reduce", ..., `group` the communicator's name. One
/// observer serves all communicators of a rank.
class CollectiveObserver {
 public:
  virtual ~CollectiveObserver() = default;
  virtual void entered(std::string_view op, std::string_view group, std::int64_t bytes) = 0;
  virtual void left() = 0;
};

/// Calls, and bytes of the tensors given to them (reduce_scatter: of full; all_gather: of shard).
struct CommunicatorCounters {
  std::int64_t calls = 0;
  std::int64_t bytes = 0;
};

/// Size of the workspace of share(), through which sums pass in pieces.
inline constexpr std::int64_t kSharingBytes = std::int64_t{32} << 20;

/// A fixed group of `size()` ranks of which this process is `rank()`. Every rank of the group calls the same collectives in
/// the same order with tensors of the same shape and type. Counts come from the tensors and may pass 2^31 elements.
///
/// Work is ordered on the stream (done on return for CPU tensors; nothing on a planning stream). Sums are deterministic: for
/// host tensors ranks are added in rank order, bf16 in float with one rounding at the end, and every rank gets the same
/// bits. A maximum over a NaN is NaN. A group of one copies and returns. Supported: f32, bf16, i32, i64 for reductions;
/// every type for the rest. Arguments that contradict one another throw Error, on planning streams too.
class Communicator {
 public:
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  /// "world", "data", "tensor": names the group in errors, counters and the watchdog's report.
  const std::string& name() const { return name_; }
  const CommunicatorCounters& counters() const { return counters_; }

  /// tensor = reduction over ranks, in place.
  void all_reduce(Stream& stream, const Tensor& tensor, ReduceOp op = ReduceOp::sum);
  /// shard (n elements) = sum over ranks of this rank's n elements of full (n · size elements). shard may be the part of
  /// full at rank() · n, or not overlap full; the rest of full is left undefined.
  void reduce_scatter(Stream& stream, const Tensor& full, const Tensor& shard);
  /// full (n · size elements) = the shards of all ranks in rank order. shard may be the part of full at rank() · n.
  void all_gather(Stream& stream, const Tensor& shard, const Tensor& full);
  /// tensor = root's tensor.
  void broadcast(Stream& stream, const Tensor& tensor, int root);
  /// Returns when every rank has called it.
  void barrier(Stream& stream);
  /// Calls `work`, whose collectives of this group, all on one stream, may run as one. Their tensors do not overlap.
  template <class Work>
  void together(const Work& work) {
    begin_together();
    work();
    end_together();
  }

  /// Collective over the group, once, with `host` the same ranks for host tensors. Device tensors inside one of `memories`,
  /// which every rank lays out alike, may from now on go the shortest way between the GPUs of a host, by means of
  /// `workspace`, kSharingBytes that are still zero and belong to the group. All are kept as long as the group is used.
  /// Collectives on such tensors are given to one stream at a time. False when there is no such way, and nothing changes.
  virtual bool share(Communicator& /*host*/, const std::vector<const Buffer*>& /*memories*/, const Buffer& /*workspace*/) {
    return false;
  }

  /// The three transfers below move data without first waiting for the other ranks. In return the caller knows that no rank
  /// still uses what they write there: all work that does was given to its stream before this group's last collective, or
  /// is that collective. That was on the same stream, and was not a transfer of the same name. They are possible and worth
  /// it for tensors like `full`, in `share`d memory and long, where `sends` says so, which it does alike on every rank.
  virtual bool sends(const Tensor& /*full*/) const { return false; }
  /// inboxes[i] [size − 1, n] = what the other ranks, from rank() + 1 on, have in part rank() of fulls[i] [size · n]: with
  /// this rank's own, the terms of a reduce_scatter.
  void send_parts(Stream& stream, std::span<const Tensor> fulls, std::span<const Tensor> inboxes);
  /// inbox = what the other of two ranks has in `tensor`: with this rank's own, the terms of an all_reduce.
  void send_whole(Stream& stream, const Tensor& tensor, const Tensor& inbox);
  /// An all_gather of each of `fulls`, whose part rank() is in place.
  void send_own(Stream& stream, std::span<const Tensor> fulls);

  /// The ranks that pass the same color, ordered by key, as a new group. Collective.
  virtual std::unique_ptr<Communicator> split(int color, int key, std::string name) = 0;
  /// Ends the whole job at once with `exit_code`, also while other ranks wait in a collective. Does not return.
  [[noreturn]] virtual void abort(int exit_code) = 0;

 protected:
  Communicator(int rank, int size, std::string name, CollectiveObserver* observer)
      : rank_(rank), size_(size), name_(std::move(name)), observer_(observer) {}

  virtual void do_all_reduce(Stream& stream, const Tensor& tensor, ReduceOp op) = 0;
  virtual void do_reduce_scatter(Stream& stream, const Tensor& full, const Tensor& shard) = 0;
  virtual void do_all_gather(Stream& stream, const Tensor& shard, const Tensor& full) = 0;
  virtual void do_broadcast(Stream& stream, const Tensor& tensor, int root) = 0;
  virtual void do_barrier(Stream& stream) = 0;
  virtual void do_send_parts(Stream& stream, std::span<const Tensor> fulls, std::span<const Tensor> inboxes);
  virtual void do_send_whole(Stream& stream, const Tensor& tensor, const Tensor& inbox);
  virtual void do_send_own(Stream& stream, std::span<const Tensor> fulls);
  virtual void begin_together() {}
  virtual void end_together() {}

  CollectiveObserver* observer() const { return observer_; }

 private:
  template <class Work>
  void run(Stream& stream, std::string_view op, std::int64_t bytes, const Work& work);

  int rank_;
  int size_;
  std::string name_;
  CollectiveObserver* observer_;
  CommunicatorCounters counters_;
  std::string_view last_op_;
};

/// A group of `size` whose member `rank` plans: it checks arguments and moves nothing; only planning streams may use it,
/// unless size is 1, when it is a complete communicator for a single process. split() keeps neither color nor key: see
/// `Grid::plan`.
std::unique_ptr<Communicator> make_self_communicator(int rank = 0, int size = 1, std::string name = "world");

/// Brings MPI up (MPI_THREAD_MULTIPLE, because the watchdog aborts from a thread of its own) and down, unless somebody else
/// has brought it up. Construct once, in main, before and outliving all MPI communicators. Throws Error when this MPI has no
/// such thread level.
class MpiEnvironment {
 public:
  MpiEnvironment(int* argc, char*** argv);
  ~MpiEnvironment();
  MpiEnvironment(const MpiEnvironment&) = delete;
  MpiEnvironment& operator=(const MpiEnvironment&) = delete;

  /// Ends all ranks at once with `exit_code`; for main when it has caught an error, and for the watchdog.
  [[noreturn]] static void abort(int exit_code);

 private:
  bool owner_ = false;
};

/// The largest workspace of one MPI communicator, and its longest message.
inline constexpr std::int64_t kMpiWorkspaceBytes = std::int64_t{1} << 20;

/// All ranks of the job over MPI; host tensors only. `observer` may be null and outlives the communicator. Larger tensors
/// travel in pieces of `workspace_bytes` (at most 2^31 - 1; tests pass a small one). A rank that receives another
/// collective's message, or one of another size, throws Error naming the peer and both calls; a failure of MPI itself
/// throws a retryable Error.
std::unique_ptr<Communicator> make_mpi_communicator(CollectiveObserver* observer = nullptr,
                                                    std::int64_t workspace_bytes = kMpiWorkspaceBytes);

}  // namespace dm
