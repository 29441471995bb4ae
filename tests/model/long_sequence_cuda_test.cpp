// One training step on a sequence of 65,536 tokens: loss and gradients on the GPU against the CPU.
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/model/model_rank.h"

namespace dm {
namespace {

constexpr std::int64_t kLength = 65536, kVocabulary = 90;
constexpr std::uint64_t kSeed = 5;

/// Of widths that the GPU's fast paths take.
ModelConfig small_aligned_config() {
  ModelConfig config;
  config.layers = 3;
  config.d_model = 32;
  config.dense_depth = 2;
  config.vocabulary = kVocabulary;
  config.resolve();
  return config;
}

/// How far the GPU's gradients of all parameters, as one vector, are from the CPU's; the loss of both must agree.
double gradient_error(const Batch& batch, DType compute, Recompute recompute, double loss_bound) {
  const ModelConfig config = small_aligned_config();
  ModelRank cpu(config), gpu(config, Device::cuda(0), compute);
  const double expected = cpu.forward_backward(batch), found = gpu.forward_backward(batch, {.recompute = recompute});
  EXPECT_NEAR(found / expected, 1, loss_bound);
  return relative_error(gpu.gradients(), cpu.gradients());
}

class LongSequence : public ::testing::TestWithParam<Recompute> {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "skipped: no GPU";
  }
};

TEST_P(LongSequence, GradientsAreThoseOfTheCpu) {
  EXPECT_LT(gradient_error(Batch::random(kSeed, 1, kLength, kVocabulary), DType::f32, GetParam(), 1e-5), 1e-4);
}

TEST_P(LongSequence, LengthAddsNothingToTheErrorOfBFloat16) {
  const double longest = gradient_error(Batch::random(kSeed, 1, kLength, kVocabulary), DType::bf16, GetParam(), 1e-3);
  const double many = gradient_error(Batch::random(kSeed, kLength / 128, 128, kVocabulary), DType::bf16, GetParam(), 1e-3);
  std::printf("error of one sequence of %d tokens %.1e, of sequences of 128 tokens %.1e\n", static_cast<int>(kLength),
              longest, many);
  EXPECT_LT(longest, 1.5 * many);
  EXPECT_LT(many, 0.2);
}

std::string name_of_case(const ::testing::TestParamInfo<Recompute>& info) {
  return info.param == Recompute::none ? "none" : info.param == Recompute::selective ? "selective" : "block";
}

INSTANTIATE_TEST_SUITE_P(Model, LongSequence, ::testing::Values(Recompute::none, Recompute::selective, Recompute::block),
                         name_of_case);

}  // namespace
}  // namespace dm
