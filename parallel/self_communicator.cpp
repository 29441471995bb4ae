// The group that needs no transport: a single process, or one rank of a group that exists only on planning streams.
#include <unistd.h>
#include <cstring>

#include <fmt/format.h>

#include "parallel/communicator.h"

namespace dm {
namespace {

class SelfCommunicator final : public Communicator {
 public:
  SelfCommunicator(int rank, int size, std::string name) : Communicator(rank, size, std::move(name), nullptr) {}

  std::unique_ptr<Communicator> split(int, int, std::string name) override {
    return make_self_communicator(rank(), size(), std::move(name));
  }

  void abort(int exit_code) override { ::_exit(exit_code); }

 protected:
  void do_all_reduce(Stream&, const Tensor&, ReduceOp) override { check_alone(); }
  void do_reduce_scatter(Stream&, const Tensor& full, const Tensor& shard) override { copy(full, shard); }
  void do_all_gather(Stream&, const Tensor& shard, const Tensor& full) override { copy(shard, full); }
  void do_broadcast(Stream&, const Tensor&, int) override { check_alone(); }
  void do_barrier(Stream&) override { check_alone(); }

 private:
  void check_alone() const {
    if (size() != 1) fail(fmt::format("group {} of {} ranks is for planning streams only", name(), size()));
  }

  void copy(const Tensor& from, const Tensor& to) const {
    check_alone();
    if (from.numel() == 0 || from.data() == to.data()) return;
    require(from.device() == Device::cpu(), "a group without transport copies host tensors only");
    std::memcpy(to.data(), from.data(), static_cast<std::size_t>(from.bytes()));
  }
};

}  // namespace

std::unique_ptr<Communicator> make_self_communicator(int rank, int size, std::string name) {
  if (rank < 0 || rank >= size) fail(fmt::format("rank {} of a group of {}", rank, size));
  return std::make_unique<SelfCommunicator>(rank, size, std::move(name));
}

}  // namespace dm
