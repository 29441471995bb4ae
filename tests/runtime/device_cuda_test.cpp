// Devices that this program cannot use are refused in a sentence; a GPU has one identity, and a meter of what it spends.
#include <chrono>
#include <string>
#include <thread>

#include <gtest/gtest.h>

#include "runtime/cuda/cuda.h"
#include "runtime/error.h"
#include "runtime/power.h"

namespace dm {
namespace {

/// What `work` says when it refuses.
template <class Work>
std::string refusal(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    return error.what();
  }
  return "nothing was refused";
}

TEST(CudaDevice, AnotherArchitectureIsRefused) {
  EXPECT_NO_THROW(cuda::require_architecture("NVIDIA H100 80GB HBM3", 9, 0));
  EXPECT_EQ(
      refusal([] { cuda::require_architecture("NVIDIA A100-SXM4-80GB", 8, 0); }),
      "NVIDIA A100-SXM4-80GB has compute capability 8.0; this program was built for 9.0 (H100, H200); use --run.device "
      "cpu");
  // Code for 9.0a runs on nothing newer either.
  EXPECT_NE(refusal([] { cuda::require_architecture("NVIDIA B200", 10, 0); }).find("has compute capability 10.0"),
            std::string::npos);
}

TEST(CudaDevice, AMachineWithoutAGpuIsRefused) {
  if (cuda::device_count() > 0) GTEST_SKIP() << "skipped: this machine has a GPU";
  const std::string said = refusal([] { cuda::require_device(0); });
  EXPECT_EQ(said.find("no usable GPU: "), 0u) << said;
  EXPECT_NE(said.find("; use --run.device cpu, or run where nvidia-smi lists a GPU"), std::string::npos) << said;
}

TEST(CudaDevice, IdentitiesDiffer) {
  const int count = cuda::device_count();
  if (count == 0) GTEST_SKIP() << "skipped: no GPU";
  EXPECT_NO_THROW(cuda::require_device(0));
  EXPECT_EQ(cuda::device_identity(0).substr(0, 4), "GPU-");
  EXPECT_EQ(cuda::device_identity(0).size(), std::string("GPU-5ccbf03e-0000-0000-0000-000000000000").size());
  for (int i = 1; i < count; ++i) EXPECT_NE(cuda::device_identity(i), cuda::device_identity(0));
  EXPECT_EQ(refusal([&] { cuda::require_device(count); }),
            "there is no GPU " + std::to_string(count) + ": this process sees " + std::to_string(count));
}

TEST(PowerMeter, NothingToReadIsNoError) {
  for (const Device device : {Device::cpu(), Device::plan(DeviceKind::cuda)}) {
    const PowerMeter meter(device);
    EXPECT_FALSE(meter.joules().has_value());
    EXPECT_FALSE(meter.clock_mhz().has_value());
    PowerSpan span(meter);
    span.sample();
    EXPECT_FALSE(span.use().has_value());
  }
}

TEST(PowerMeter, CountsWhatAGpuSpends) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "skipped: no GPU";
  const PowerMeter meter(Device::cuda(0));
  const std::optional<double> before = meter.joules();
  if (!before) GTEST_SKIP() << "skipped: this driver does not count energy";
  std::this_thread::sleep_for(std::chrono::seconds(1));
  const double watts = meter.joules().value() - *before;  // an idle GPU's, or that of whoever else uses it
  EXPECT_GT(watts, 5);
  EXPECT_LT(watts, 2000);
  EXPECT_GT(meter.clock_mhz().value(), 100);
  PowerSpan span(meter);
  span.sample();
  EXPECT_GE(span.use().value().joules, 0);
  EXPECT_GT(span.use().value().clock_mhz, 100);
}

}  // namespace
}  // namespace dm
