// A group whose other rank never comes does not hang: NCCL's start ends at the deadline with a sentence.
#include <string>

#include <gtest/gtest.h>

#include "parallel/nccl_communicator.h"
#include "runtime/cuda/cuda.h"
#include "runtime/error.h"

namespace dm {
namespace {

/// Rank 0 of two, of which the other does not exist.
class Abandoned final : public Communicator {
 public:
  Abandoned() : Communicator(0, 2, "data", nullptr) {}
  std::unique_ptr<Communicator> split(int, int, std::string) override { fail("not split"); }
  void abort(int exit_code) override { std::_Exit(exit_code); }

 protected:
  void do_all_reduce(Stream&, const Tensor&, ReduceOp) override {}
  void do_reduce_scatter(Stream&, const Tensor&, const Tensor&) override {}
  void do_all_gather(Stream&, const Tensor&, const Tensor&) override {}
  void do_broadcast(Stream&, const Tensor&, int) override {}
  void do_barrier(Stream&) override {}
};

TEST(NcclStart, WithoutItsPeerEndsAtTheDeadline) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "skipped: no GPU";
  Abandoned host;
  try {
    make_nccl_communicator(host, Device::cuda(0), "data", nullptr, /*deadline_seconds=*/2);
    FAIL() << "a group of two began with one rank";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::retryable);
    EXPECT_STREQ(error.what(), "NCCL: start of group data: not all 2 ranks were there after 2 s");
  }
}

}  // namespace
}  // namespace dm
