// One training step on a sequence of 65,536 tokens: loss and every gradient on the GPU against the CPU.
#include <string>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include "tests/model/model_rank.h"

namespace dm {
namespace {

constexpr std::int64_t kLength = 65536;

ModelConfig config_of_long() {
  ModelConfig config;
  config.layers = 3;
  config.d_model = 32;
  config.dense_depth = 2;
  config.vocabulary = 90;
  config.resolve();
  return config;
}

/// Compute dtype and recompute.
class LongSequence : public ::testing::TestWithParam<std::tuple<DType, Recompute>> {};

TEST_P(LongSequence, LossAndEveryGradientAreThoseOfTheCpu) {
  if (cuda::device_count() == 0) GTEST_SKIP() << "skipped: no GPU";
  const auto [compute, recompute] = GetParam();
  const bool exact = compute == DType::f32;
  const ModelConfig config = config_of_long();
  const Batch batch = Batch::random(/*seed=*/5, 1, kLength, config.vocabulary);
  ModelRank cpu(config), gpu(config, Device::cuda(0), compute);
  const double expected = cpu.forward_backward(batch), found = gpu.forward_backward(batch, {.recompute = recompute});
  EXPECT_NEAR(found / expected, 1, exact ? 1e-5 : 1e-2);
  double worst = 0;
  for (const ParameterStore::Entry& entry : cpu.store().entries()) {
    const double error = relative_error(gpu.gradient(entry.spec.name), cpu.gradient(entry.spec.name));
    EXPECT_LT(error, exact ? 1e-4 : 8e-2) << entry.spec.name;
    worst = std::max(worst, error);
  }
  std::printf("loss differs by %.1e, gradients by %.1e at most\n", found / expected - 1, worst);
}

INSTANTIATE_TEST_SUITE_P(Model, LongSequence,
                         ::testing::Combine(::testing::Values(DType::f32, DType::bf16),
                                            ::testing::Values(Recompute::none, Recompute::block)),
                         [](const auto& info) {
                           return std::string(name_of(std::get<0>(info.param))) +
                                  (std::get<1>(info.param) == Recompute::block ? "_recompute" : "");
                         });

}  // namespace
}  // namespace dm
