// A build without the CUDA backend sees no GPU and refuses one in a sentence.
#include <string>

#include <gtest/gtest.h>

#include "runtime/cuda/cuda.h"
#include "runtime/error.h"
#include "runtime/stream.h"

namespace dm {
namespace {

TEST(CudaAbsent, AGpuIsRefused) {
  if (cuda::is_built()) GTEST_SKIP() << "skipped: this build has the CUDA backend";
  EXPECT_EQ(cuda::device_count(), 0);
  try {
    Stream stream(Device::cuda(0));
    FAIL() << "there is a stream on a GPU that this program knows nothing of";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_STREQ(error.what(), "this build has no CUDA backend; use --run.device cpu, or build where nvcc is found");
  }
}

}  // namespace
}  // namespace dm
