// A group whose other rank never comes does not hang: NCCL's start ends at the deadline with a sentence.
#include <string>

#include <gtest/gtest.h>

#include "parallel/nccl_communicator.h"
#include "runtime/cuda/cuda.h"
#include "runtime/error.h"
#include "tests/parallel/idle_communicator.h"

namespace dm {
namespace {

TEST(NcclStart, WithoutItsPeerEndsAtTheDeadline) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "skipped: no GPU";
  IdleCommunicator host("data");
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
