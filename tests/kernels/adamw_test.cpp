// AdamW against its formula in double over several steps, cut in any way, in place and into bfloat16.
#include "kernels/adamw.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/kernels/oracle.h"

namespace dm {
namespace {

using oracle::error_of;
using oracle::Guarded;
using oracle::Overwritten;
using oracle::Random;

/// Master weights and moments of one flat range.
struct State {
  explicit State(std::int64_t n) : master("master", {n}), first({n}, 0.0f), second({n}, 0.0f), value({n}) {}
  Random master;
  Guarded<float> first, second;
  Overwritten value;

  void update(Stream& stream, const AdamWStep& step, const Tensor& gradient, std::int64_t begin, std::int64_t count) {
    adamw(stream, step, gradient.flat(begin, count), first.tensor().flat(begin, count), second.tensor().flat(begin, count),
          master.tensor().flat(begin, count), value.tensor().flat(begin, count));
  }
};

AdamWStep step_number(std::int64_t number) {
  return {.lr = 1e-2f,
          .beta1 = 0.9f,
          .beta2 = 0.95f,
          .epsilon = 1e-8f,
          .weight_decay = 0.1f,
          .step = number,
          .gradient_scale = 0.5f};
}

Random gradient_of(std::int64_t step, std::int64_t n) {
  return Random("gradient " + std::to_string(step), {n});
}

class AdamW : public ::testing::Test {
 protected:
  Stream stream{Device::cpu()};
};

TEST_F(AdamW, FollowsTheFormulaOverManySteps) {
  for (const std::int64_t n : {0, 1, 5, 16, 37, 1000}) {
    State state(n);
    std::vector<double> master = state.master.as_double(), first(master.size()), second(master.size());
    for (std::int64_t number = 1; number <= 20; ++number) {
      const AdamWStep step = step_number(number);
      Random gradient = gradient_of(number, n);
      state.update(stream, step, gradient.tensor(), 0, n);
      const auto exact = [](float option) { return static_cast<double>(option); };
      for (std::size_t i = 0; i < master.size(); ++i) {
        const double g = exact(step.gradient_scale) * gradient.as_double()[i];
        first[i] = exact(step.beta1) * first[i] + (1 - exact(step.beta1)) * g;
        second[i] = exact(step.beta2) * second[i] + (1 - exact(step.beta2)) * g * g;
        const double m = first[i] / (1 - std::pow(exact(step.beta1), static_cast<double>(number)));
        const double v = second[i] / (1 - std::pow(exact(step.beta2), static_cast<double>(number)));
        master[i] -= exact(step.lr) * (m / (std::sqrt(v) + exact(step.epsilon)) + exact(step.weight_decay) * master[i]);
      }
    }
    EXPECT_CLOSE(state.master, master, 1e-6) << n;
    EXPECT_CLOSE(state.first, first, 1e-6) << n;
    EXPECT_CLOSE(state.second, second, 1e-6) << n;
    EXPECT_TRUE(oracle::same_bits(state.value.values(), state.master.values()));
  }
}

TEST_F(AdamW, TheCutOfARangeDoesNotMatter) {
  constexpr std::int64_t kCount = 203;
  State whole(kCount);
  for (const std::int64_t piece : {1, 5, 16, 37, 100, 202}) {
    State cut(kCount);
    for (std::int64_t number = 1; number <= 3; ++number) {
      Random gradient = gradient_of(number, kCount);
      if (piece == 1) whole.update(stream, step_number(number), gradient.tensor(), 0, kCount);
      for (std::int64_t begin = 0; begin < kCount; begin += piece) {
        cut.update(stream, step_number(number), gradient.tensor(), begin, std::min(piece, kCount - begin));
      }
    }
    EXPECT_TRUE(oracle::same_bits(cut.master.values(), whole.master.values())) << "pieces of " << piece;
    EXPECT_TRUE(oracle::same_bits(cut.value.values(), whole.value.values())) << "pieces of " << piece;
    EXPECT_TRUE(oracle::same_bits(cut.first.values(), whole.first.values())) << "pieces of " << piece;
    EXPECT_TRUE(oracle::same_bits(cut.second.values(), whole.second.values())) << "pieces of " << piece;
  }
}

TEST_F(AdamW, ValueMayBeTheMasterItself) {
  constexpr std::int64_t kCount = 37;
  State apart(kCount), together(kCount);
  Random gradient = gradient_of(1, kCount);
  apart.update(stream, step_number(1), gradient.tensor(), 0, kCount);
  adamw(stream, step_number(1), gradient.tensor(), together.first.tensor(), together.second.tensor(),
        together.master.tensor(), together.master.tensor());
  EXPECT_TRUE(oracle::same_bits(apart.value.values(), together.master.values()));
}

TEST_F(AdamW, BFloat16ValuesAreTheRoundedMaster) {
  constexpr std::int64_t kCount = 37;
  State state(kCount);
  Random gradient = gradient_of(1, kCount);
  std::vector<BFloat16> values(kCount);
  adamw(stream, step_number(1), gradient.tensor(), state.first.tensor(), state.second.tensor(), state.master.tensor(),
        Tensor::of(values.data(), {kCount}));
  for (std::int64_t i = 0; i < kCount; ++i) {
    EXPECT_EQ(values[static_cast<std::size_t>(i)].bits, BFloat16(state.master[i]).bits);
  }
}

TEST_F(AdamW, TheFirstStepMovesEveryParameterByTheLearningRate) {
  constexpr std::int64_t kCount = 37;
  State state(kCount);
  Random gradient = gradient_of(1, kCount);
  const Random before("master", {kCount});
  AdamWStep step = step_number(1);
  step.weight_decay = 0;
  state.update(stream, step, gradient.tensor(), 0, kCount);
  for (std::int64_t i = 0; i < kCount; ++i) {
    EXPECT_NEAR(state.master[i] - before[i], gradient[i] > 0 ? -step.lr : step.lr, 1e-6);
  }
}

TEST_F(AdamW, ManyStepsLaterNothingIsCorrectedAnyMore) {
  State state(1);
  Guarded<float> gradient({1}, 1.0f);
  state.first[0] = 1, state.second[0] = 1;
  AdamWStep step = step_number(1'000'000'000);
  step.weight_decay = 0, step.gradient_scale = 1;
  const float before = state.master[0];
  state.update(stream, step, gradient.tensor(), 0, 1);
  EXPECT_NEAR(state.master[0], before - step.lr, 1e-7);
}

TEST_F(AdamW, NamesTheWrongTensor) {
  State state(8);
  Random gradient = gradient_of(1, 9);
  EXPECT_EQ(error_of([&] {
              adamw(stream, step_number(1), gradient.tensor(), state.first.tensor(), state.second.tensor(),
                    state.master.tensor(), state.value.tensor());
            }),
            "adamw: first_moment is float32 [8], expected float32 of 9 elements");
  EXPECT_EQ(error_of([&] { state.update(stream, step_number(0), gradient.tensor(), 0, 8); }), "adamw: step counts from 1");
}

}  // namespace
}  // namespace dm
