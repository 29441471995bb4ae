// Rank 0 of two, of which the other does not exist: a communicator for tests of what stands around transfers.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "parallel/communicator.h"
#include "runtime/error.h"

namespace dm {

/// Every collective returns at once and moves nothing.
class IdleCommunicator : public Communicator {
 public:
  explicit IdleCommunicator(std::string name) : Communicator(0, 2, std::move(name), nullptr) {}
  std::unique_ptr<Communicator> split(int, int, std::string) override { fail("not split"); }
  void abort(int exit_code) override { std::_Exit(exit_code); }

 protected:
  void do_all_reduce(Stream&, const Tensor&, ReduceOp) override {}
  void do_reduce_scatter(Stream&, const Tensor&, const Tensor&) override {}
  void do_all_gather(Stream&, const Tensor&, const Tensor&) override {}
  void do_broadcast(Stream&, const Tensor&, int) override {}
  void do_barrier(Stream&) override {}
};

}  // namespace dm
