// Collectives over MPI for host tensors: point-to-point exchanges in bounded pieces, sums in rank order.
#include <unistd.h>
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <vector>

#include <fmt/format.h>
#include <mpi.h>

#include "parallel/communicator.h"

namespace dm {
namespace {

/// Up to here an all_reduce sends whole tensors to every rank: one latency instead of two.
constexpr std::int64_t kSmallBytes = std::int64_t{8} << 10;

constexpr std::array<std::string_view, 5> kExchangeNames = {"sum all_reduce", "max all_reduce", "reduce_scatter",
                                                            "all_gather", "?"};
enum class Exchange : std::uint8_t { all_reduce_sum, all_reduce_max, reduce_scatter, all_gather };

/// What a message belongs to, packed into its MPI tag (MPI guarantees tags up to 32767), so that a rank which calls
/// something else is found by the first message it sends.
struct Call {
  static constexpr int kCalls = 256;  // calls are told apart modulo this

  Exchange exchange = Exchange::all_gather;
  DType dtype = DType::u8;
  int number = 0;

  int tag() const { return (number * 8 + static_cast<int>(exchange)) * 8 + static_cast<int>(dtype); }
  static Call of_tag(int tag) { return {static_cast<Exchange>(tag / 8 % 8), static_cast<DType>(tag % 8), tag / 64}; }
  std::string describe() const {
    const auto at = std::min(static_cast<std::size_t>(exchange), kExchangeNames.size() - 1);
    return fmt::format("{} of {} (call {} modulo {})", kExchangeNames[at], name_of(dtype), number, kCalls);
  }
};

struct Sum {
  template <class A>
  static void apply(A& accumulator, A value) {
    accumulator += value;
  }
};

struct Max {
  template <class A>
  static void apply(A& accumulator, A value) {
    // The second test lets a NaN through; one that is already in the accumulator compares false and stays.
    accumulator = value > accumulator || value != value ? value : accumulator;
  }
};

template <class T>
struct AccumulatorOf {
  using type = T;
};
template <>
struct AccumulatorOf<BFloat16> {
  using type = float;
};

/// out[i] = sources[0][i] + sources[1][i] + ... in this order. out may be one of the sources.
template <class T, class Op>
void reduce_in_order(const std::vector<const std::byte*>& sources, std::byte* out, std::int64_t count) {
  using A = typename AccumulatorOf<T>::type;
  constexpr std::int64_t kBlock = 512;  // accumulators stay in the first-level cache
  A accumulator[kBlock];
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t length = std::min(kBlock, count - begin);
    const T* first = reinterpret_cast<const T*>(sources[0]) + begin;
    for (std::int64_t i = 0; i < length; ++i) accumulator[i] = static_cast<A>(first[i]);
    for (std::size_t s = 1; s < sources.size(); ++s) {
      const T* source = reinterpret_cast<const T*>(sources[s]) + begin;
      for (std::int64_t i = 0; i < length; ++i) Op::apply(accumulator[i], static_cast<A>(source[i]));
    }
    T* target = reinterpret_cast<T*>(out) + begin;
    for (std::int64_t i = 0; i < length; ++i) target[i] = static_cast<T>(accumulator[i]);
  }
}

template <class T>
void reduce_in_order(ReduceOp op, const std::vector<const std::byte*>& sources, std::byte* out, std::int64_t count) {
  op == ReduceOp::sum ? reduce_in_order<T, Sum>(sources, out, count) : reduce_in_order<T, Max>(sources, out, count);
}

void reduce_in_order(DType dtype, ReduceOp op, const std::vector<const std::byte*>& sources, std::byte* out,
                     std::int64_t count) {
  switch (dtype) {
    case DType::f32:
      return reduce_in_order<float>(op, sources, out, count);
    case DType::bf16:
      return reduce_in_order<BFloat16>(op, sources, out, count);
    case DType::i32:
      return reduce_in_order<std::int32_t>(op, sources, out, count);
    case DType::i64:
      return reduce_in_order<std::int64_t>(op, sources, out, count);
    case DType::u8:
      break;
  }
  fail("uint8 cannot be reduced");
}

/// A contiguous array cut into one part for each rank, the sizes differing by at most one element.
struct Parts {
  std::byte* data;
  std::int64_t elements;
  std::int64_t element_bytes;
  int ranks;

  std::int64_t begin(int rank) const { return elements / ranks * rank + std::min<std::int64_t>(rank, elements % ranks); }
  std::int64_t count(int rank) const { return begin(rank + 1) - begin(rank); }
  std::int64_t longest() const { return count(0); }
  std::byte* at(int rank, std::int64_t offset) const { return data + (begin(rank) + offset) * element_bytes; }
  /// Elements of the piece [offset, offset + length) that `rank`'s part has.
  std::int64_t piece(int rank, std::int64_t offset, std::int64_t length) const {
    return std::clamp<std::int64_t>(count(rank) - offset, 0, length);
  }
};

/// Memory: a workspace that grows to what the largest reduction needed, at most `workspace_bytes` (for more ranks than
/// fit, one element a rank), and two requests a rank.
class MpiCommunicator final : public Communicator {
 public:
  /// Owns `comm`.
  MpiCommunicator(MPI_Comm comm, int rank, int size, std::string name, CollectiveObserver* observer,
                  std::int64_t workspace_bytes)
      : Communicator(rank, size, std::move(name), observer), comm_(comm), workspace_bytes_(workspace_bytes) {
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
    requests_.reserve(2 * static_cast<std::size_t>(size));
    statuses_.reserve(2 * static_cast<std::size_t>(size));
    expected_.reserve(static_cast<std::size_t>(size));
    sources_.resize(static_cast<std::size_t>(size));
  }

  ~MpiCommunicator() override {
    int finalized = 0;
    MPI_Finalized(&finalized);
    if (!finalized) MPI_Comm_free(&comm_);
  }

  std::unique_ptr<Communicator> split(int color, int key, std::string name) override;
  void abort(int exit_code) override { MpiEnvironment::abort(exit_code); }

 protected:
  void do_all_reduce(Stream&, const Tensor& tensor, ReduceOp op) override;
  void do_reduce_scatter(Stream&, const Tensor& full, const Tensor& shard) override;
  void do_all_gather(Stream&, const Tensor& shard, const Tensor& full) override;
  void do_broadcast(Stream&, const Tensor& tensor, int root) override;
  void do_barrier(Stream&) override { check(MPI_Barrier(comm_), "barrier"); }

 private:
  struct Expected {
    int peer;
    std::int64_t bytes;
  };

  Call call(Exchange exchange, DType dtype) const {
    return {exchange, dtype, static_cast<int>(counters().calls % Call::kCalls)};
  }
  Parts parts_of(const Tensor& tensor) const {
    return {static_cast<std::byte*>(tensor.data()), tensor.numel(), size_of(tensor.dtype()), size()};
  }

  /// `work(to, from)` once for every other rank, each rank starting at another peer.
  template <class Work>
  void for_each_peer(const Work& work) const {
    for (int k = 1; k < size(); ++k) work((rank() + k) % size(), (rank() - k + size()) % size());
  }

  std::byte* workspace(std::int64_t bytes);
  void receive(int peer, std::byte* to, std::int64_t bytes);
  void send(const Call& call, int peer, const std::byte* from, std::int64_t bytes);
  void complete(const Call& call);
  void check_received(const Call& call, const MPI_Status& status, const Expected& expected, int result) const;
  void check(int result, std::string_view what) const;

  void reduce_small(const Call& call, const Parts& whole, DType dtype, ReduceOp op);
  void reduce_own_part(const Call& call, const Parts& parts, DType dtype, ReduceOp op, std::byte* out);
  void gather_parts(const Call& call, const Parts& parts);

  MPI_Comm comm_;
  std::int64_t workspace_bytes_;
  std::vector<std::byte> workspace_;
  std::vector<MPI_Request> requests_;  // of one exchange: the receives come first
  std::vector<MPI_Status> statuses_;
  std::vector<int> results_;
  std::vector<Expected> expected_;
  std::vector<const std::byte*> sources_;
};

void MpiCommunicator::check(int result, std::string_view what) const {
  if (result == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(result, text, &length);
  fail(fmt::format("{} of group {} (call {}, rank {} of {}) failed in MPI: {}", what, name(), counters().calls, rank(),
                   size(), std::string_view(text, static_cast<std::size_t>(length))),
       ExitCode::retryable);
}

std::byte* MpiCommunicator::workspace(std::int64_t bytes) {
  if (static_cast<std::int64_t>(workspace_.size()) < bytes) workspace_.resize(static_cast<std::size_t>(bytes));
  return workspace_.data();
}

void MpiCommunicator::receive(int peer, std::byte* to, std::int64_t bytes) {
  if (bytes == 0) return;
  // Any tag: messages of one peer arrive in order, so a wrong tag means that the peer called something else.
  check(MPI_Irecv(to, static_cast<int>(bytes), MPI_BYTE, peer, MPI_ANY_TAG, comm_, &requests_.emplace_back()), "receive");
  expected_.push_back({peer, bytes});
}

void MpiCommunicator::send(const Call& call, int peer, const std::byte* from, std::int64_t bytes) {
  if (bytes == 0) return;
  check(MPI_Isend(from, static_cast<int>(bytes), MPI_BYTE, peer, call.tag(), comm_, &requests_.emplace_back()), "send");
}

/// One request after the other: MPI_Waitall of Open MPI 4.1 may spin for ever when one of them fails.
void MpiCommunicator::complete(const Call& call) {
  statuses_.resize(requests_.size());
  results_.resize(requests_.size());
  for (std::size_t r = 0; r < requests_.size(); ++r) results_[r] = MPI_Wait(&requests_[r], &statuses_[r]);
  for (std::size_t r = 0; r < expected_.size(); ++r) check_received(call, statuses_[r], expected_[r], results_[r]);
  for (std::size_t r = expected_.size(); r < requests_.size(); ++r) check(results_[r], "send");
  requests_.clear();
  expected_.clear();
}

void MpiCommunicator::check_received(const Call& call, const MPI_Status& status, const Expected& expected,
                                     int result) const {
  int error_class = result;
  if (result != MPI_SUCCESS) MPI_Error_class(result, &error_class);
  if (error_class != MPI_SUCCESS && error_class != MPI_ERR_TRUNCATE) check(result, call.describe());
  if (status.MPI_TAG != call.tag()) {
    fail(
        fmt::format("group {}: rank {} called {} where rank {} called {}; every rank must call the same collectives in the "
                    "same order",
                    name(), expected.peer, Call::of_tag(status.MPI_TAG).describe(), rank(), call.describe()));
  }
  int bytes = 0;
  MPI_Get_count(&status, MPI_BYTE, &bytes);
  if (error_class == MPI_ERR_TRUNCATE || bytes != expected.bytes) {
    fail(fmt::format("group {}: in {} rank {} sent {} bytes where rank {} expected {}; every rank must pass the same shape",
                     name(), call.describe(), expected.peer,
                     error_class == MPI_ERR_TRUNCATE ? "more" : std::to_string(bytes), rank(), expected.bytes));
  }
}

void MpiCommunicator::reduce_small(const Call& call, const Parts& whole, DType dtype, ReduceOp op) {
  const std::int64_t bytes = whole.elements * whole.element_bytes;
  std::byte* staged = workspace(bytes * size());
  for_each_peer([&](int, int from) { receive(from, staged + from * bytes, bytes); });
  for_each_peer([&](int to, int) { send(call, to, whole.data, bytes); });
  complete(call);
  for (int r = 0; r < size(); ++r) sources_[static_cast<std::size_t>(r)] = r == rank() ? whole.data : staged + r * bytes;
  reduce_in_order(dtype, op, sources_, whole.data, whole.elements);
}

/// out = the reduction over ranks of this rank's part; piece by piece, because the parts of all peers meet in the workspace.
void MpiCommunicator::reduce_own_part(const Call& call, const Parts& parts, DType dtype, ReduceOp op, std::byte* out) {
  const std::int64_t width = parts.element_bytes;
  const std::int64_t length = std::min(parts.longest(), std::max<std::int64_t>(1, workspace_bytes_ / (width * size())));
  std::byte* staged = workspace(length * width * size());
  for (std::int64_t offset = 0; offset < parts.longest(); offset += length) {
    const std::int64_t own = parts.piece(rank(), offset, length);
    for_each_peer([&](int, int from) { receive(from, staged + from * length * width, own * width); });
    for_each_peer([&](int to, int) { send(call, to, parts.at(to, offset), parts.piece(to, offset, length) * width); });
    complete(call);
    for (int r = 0; r < size(); ++r) {
      sources_[static_cast<std::size_t>(r)] = r == rank() ? parts.at(r, offset) : staged + r * length * width;
    }
    reduce_in_order(dtype, op, sources_, out + offset * width, own);
  }
}

/// Sends this rank's part to everybody and fills the others' parts.
void MpiCommunicator::gather_parts(const Call& call, const Parts& parts) {
  const std::int64_t width = parts.element_bytes;
  const std::int64_t length = std::max<std::int64_t>(1, workspace_bytes_ / width);
  for (std::int64_t offset = 0; offset < parts.longest(); offset += length) {
    for_each_peer([&](int, int from) { receive(from, parts.at(from, offset), parts.piece(from, offset, length) * width); });
    for_each_peer(
        [&](int to, int) { send(call, to, parts.at(rank(), offset), parts.piece(rank(), offset, length) * width); });
    complete(call);
  }
}

void MpiCommunicator::do_all_reduce(Stream&, const Tensor& tensor, ReduceOp op) {
  if (size() == 1 || tensor.numel() == 0) return;
  const Parts parts = parts_of(tensor);
  const Call current = call(op == ReduceOp::sum ? Exchange::all_reduce_sum : Exchange::all_reduce_max, tensor.dtype());
  if (tensor.bytes() <= kSmallBytes && tensor.bytes() * size() <= workspace_bytes_) {
    return reduce_small(current, parts, tensor.dtype(), op);
  }
  reduce_own_part(current, parts, tensor.dtype(), op, parts.at(rank(), 0));
  gather_parts(current, parts);
}

void MpiCommunicator::do_reduce_scatter(Stream&, const Tensor& full, const Tensor& shard) {
  if (full.numel() == 0) return;
  reduce_own_part(call(Exchange::reduce_scatter, full.dtype()), parts_of(full), full.dtype(), ReduceOp::sum,
                  static_cast<std::byte*>(shard.data()));
}

void MpiCommunicator::do_all_gather(Stream&, const Tensor& shard, const Tensor& full) {
  if (full.numel() == 0) return;
  const Parts parts = parts_of(full);
  if (shard.data() != parts.at(rank(), 0)) {
    std::memcpy(parts.at(rank(), 0), shard.data(), static_cast<std::size_t>(shard.bytes()));
  }
  gather_parts(call(Exchange::all_gather, full.dtype()), parts);
}

void MpiCommunicator::do_broadcast(Stream&, const Tensor& tensor, int root) {
  auto* data = static_cast<std::byte*>(tensor.data());
  for (std::int64_t begin = 0; begin < tensor.bytes(); begin += workspace_bytes_) {
    const std::int64_t bytes = std::min(workspace_bytes_, tensor.bytes() - begin);
    check(MPI_Bcast(data + begin, static_cast<int>(bytes), MPI_BYTE, root, comm_), "broadcast");
  }
}

std::unique_ptr<Communicator> MpiCommunicator::split(int color, int key, std::string name) {
  require(color >= 0, "the color of a split is not negative");
  MPI_Comm part = MPI_COMM_NULL;
  check(MPI_Comm_split(comm_, color, key, &part), "split");
  int rank = 0;
  int size = 0;
  MPI_Comm_rank(part, &rank);
  MPI_Comm_size(part, &size);
  return std::make_unique<MpiCommunicator>(part, rank, size, std::move(name), observer(), workspace_bytes_);
}

}  // namespace

MpiEnvironment::MpiEnvironment(int* argc, char*** argv) {
  int initialized = 0;
  int level = MPI_THREAD_SINGLE;
  MPI_Initialized(&initialized);
  if (initialized) {
    MPI_Query_thread(&level);
  } else {
    MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &level);
    owner_ = true;
  }
  if (level < MPI_THREAD_MULTIPLE) {
    if (owner_) MPI_Finalize();
    fail(
        "this MPI does not give MPI_THREAD_MULTIPLE, which the watchdog needs to end a job from its own thread; use an MPI "
        "built with thread support");
  }
}

MpiEnvironment::~MpiEnvironment() {
  if (owner_) MPI_Finalize();
}

void MpiEnvironment::abort(int exit_code) {
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  if (initialized && !finalized) MPI_Abort(MPI_COMM_WORLD, exit_code);
  ::_exit(exit_code);
}

std::unique_ptr<Communicator> make_mpi_communicator(CollectiveObserver* observer, std::int64_t workspace_bytes) {
  require(workspace_bytes > 0 && workspace_bytes <= std::numeric_limits<int>::max(),
          "the MPI workspace has between 1 and 2^31 - 1 bytes");
  int initialized = 0;
  MPI_Initialized(&initialized);
  require(initialized != 0, "construct MpiEnvironment before the first MPI communicator");
  MPI_Comm comm = MPI_COMM_NULL;
  MPI_Comm_dup(MPI_COMM_WORLD, &comm);
  int rank = 0;
  int size = 0;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
  return std::make_unique<MpiCommunicator>(comm, rank, size, "world", observer, workspace_bytes);
}

}  // namespace dm
