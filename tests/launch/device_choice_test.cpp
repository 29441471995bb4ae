// Who computes where, for every way in which ranks see the GPUs of their nodes.
#include "launch/device_choice.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "parallel/agreement.h"
#include "runtime/cuda/cuda.h"

namespace dm {
namespace {

using Ordinals = std::vector<int>;

Ordinals assign(const std::vector<VisibleGpus>& ranks) {
  return assign_gpus(ranks);
}

TEST(AssignGpus, RanksThatSeeAllOfTheirNodeShareItInRankOrder) {
  const VisibleGpus here{"a", {"g0", "g1"}}, there{"b", {"g2", "g3"}};
  EXPECT_EQ(assign({here, here, there, there}), (Ordinals{0, 1, 0, 1}));
  EXPECT_EQ(assign({here, there, here, there}), (Ordinals{0, 0, 1, 1})) << "whatever order mpirun places ranks in";
  EXPECT_EQ(assign({here}), (Ordinals{0}));
}

TEST(AssignGpus, RanksThatSeeOneGpuEachTakeIt) {
  EXPECT_EQ(assign({{"a", {"g0"}}, {"a", {"g1"}}, {"a", {"g2"}}}), (Ordinals{0, 0, 0}));
}

TEST(AssignGpus, RanksMaySeeAnyPart) {
  const VisibleGpus lower{"a", {"g0", "g1"}}, upper{"a", {"g2", "g3"}};
  EXPECT_EQ(assign({lower, upper, lower, upper}), (Ordinals{0, 0, 1, 1}));
  EXPECT_EQ(assign({{"a", {"g0", "g1"}}, {"a", {"g1", "g0"}}}), (Ordinals{0, 0})) << "in an order of their own";
}

/// What the refusal of these ranks says.
std::string refusal(const std::vector<VisibleGpus>& ranks) {
  try {
    assign_gpus(ranks);
  } catch (const AgreedError& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    return error.what();
  }
  return "nothing was refused";
}

TEST(AssignGpus, SeveralRanksOnOneGpuAreRefused) {
  const VisibleGpus both{"a", {"g0", "g1"}}, first{"a", {"g0"}};
  EXPECT_EQ(refusal({both, both, both}),
            "device: rank 2 on a has no GPU of its own: lower ranks have taken all 2 that it sees; start at most one rank a "
            "GPU, or use --run.device cpu");
  EXPECT_NE(refusal({first, first}).find("rank 1 on a has no GPU of its own: lower ranks have taken all 1"),
            std::string::npos);
  EXPECT_NE(refusal({both, both, first}).find("rank 2 on a"), std::string::npos);
  // Two containers of one machine have two names and the same GPU.
  EXPECT_NE(refusal({{"a", {"g0"}}, {"b", {"g0"}}}).find("rank 1 on b"), std::string::npos);
  EXPECT_NE(refusal({both, {"b", {}}}).find("rank 1 on b has no GPU of its own: it sees none;"), std::string::npos);
}

TEST(DeviceKind, IsWhatWasAskedFor) {
  EXPECT_EQ(device_kind("cpu"), DeviceKind::cpu);
  EXPECT_EQ(device_kind("cuda"), DeviceKind::cuda);
  EXPECT_EQ(device_kind("auto"), cuda::device_count() > 0 ? DeviceKind::cuda : DeviceKind::cpu);
}

TEST(AdviceOnCores, IsForGpuRanksBoundToOneCore) {
  EXPECT_EQ(advice_on_cores(DeviceKind::cuda, 1, 64),
            "this rank may use 1 of the machine's 64 cores, which the threads that feed its GPU have to share: start with "
            "mpirun --bind-to none");
  EXPECT_EQ(advice_on_cores(DeviceKind::cuda, 2, 64), "");
  EXPECT_EQ(advice_on_cores(DeviceKind::cuda, 1, 1), "") << "there are no others";
  EXPECT_EQ(advice_on_cores(DeviceKind::cpu, 1, 64), "") << "ranks are the parallelism on CPUs";
}

}  // namespace
}  // namespace dm
