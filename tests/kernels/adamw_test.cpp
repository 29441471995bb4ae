// AdamW against its formula in double over several steps, cut in any way, in place and into bfloat16; and its control.
#include "kernels/adamw.h"

#include <cmath>
#include <cstdint>
#include <limits>
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

constexpr AdamWSettings kSettings{.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .weight_decay = 0.1f};

/// Master weights and moments of one flat range.
struct State {
  explicit State(std::int64_t n) : master("master", {n}), first({n}, 0.0f), second({n}, 0.0f), value({n}) {}
  Random master;
  Guarded<float> first, second;
  Overwritten value;

  void update(Stream& stream, const Tensor& control, const Tensor& gradient, std::int64_t begin, std::int64_t count,
              const AdamWSettings& settings = kSettings) {
    adamw(stream, settings, control, gradient.flat(begin, count), first.tensor().flat(begin, count),
          second.tensor().flat(begin, count), master.tensor().flat(begin, count), value.tensor().flat(begin, count));
  }
};

/// What step_control gives for the `number`-th update and this gradient scale.
class Control {
 public:
  explicit Control(std::int64_t number, float scale = 0.5f) {
    const auto correction = [&](float beta) {
      return static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(beta), static_cast<double>(number))));
    };
    values_[0] = scale, values_[1] = correction(kSettings.beta1), values_[2] = correction(kSettings.beta2);
  }
  Tensor tensor() { return values_.tensor(); }
  float scale() const { return values_[0]; }

 private:
  Guarded<float> values_{{3}, 0.0f};
};

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
      Control control(number);
      Random gradient = gradient_of(number, n);
      state.update(stream, control.tensor(), gradient.tensor(), 0, n);
      const auto exact = [](float option) { return static_cast<double>(option); };
      for (std::size_t i = 0; i < master.size(); ++i) {
        const double g = exact(control.scale()) * gradient.as_double()[i];
        first[i] = exact(kSettings.beta1) * first[i] + (1 - exact(kSettings.beta1)) * g;
        second[i] = exact(kSettings.beta2) * second[i] + (1 - exact(kSettings.beta2)) * g * g;
        const double m = first[i] / (1 - std::pow(exact(kSettings.beta1), static_cast<double>(number)));
        const double v = second[i] / (1 - std::pow(exact(kSettings.beta2), static_cast<double>(number)));
        master[i] -= exact(kSettings.lr) *
                     (m / (std::sqrt(v) + exact(kSettings.epsilon)) + exact(kSettings.weight_decay) * master[i]);
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
      if (piece == 1) whole.update(stream, Control(number).tensor(), gradient.tensor(), 0, kCount);
      for (std::int64_t begin = 0; begin < kCount; begin += piece) {
        cut.update(stream, Control(number).tensor(), gradient.tensor(), begin, std::min(piece, kCount - begin));
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
  apart.update(stream, Control(1).tensor(), gradient.tensor(), 0, kCount);
  adamw(stream, kSettings, Control(1).tensor(), gradient.tensor(), together.first.tensor(), together.second.tensor(),
        together.master.tensor(), together.master.tensor());
  EXPECT_TRUE(oracle::same_bits(apart.value.values(), together.master.values()));
}

TEST_F(AdamW, BFloat16ValuesAreTheRoundedMaster) {
  constexpr std::int64_t kCount = 37;
  State state(kCount);
  Random gradient = gradient_of(1, kCount);
  std::vector<BFloat16> values(kCount);
  adamw(stream, kSettings, Control(1).tensor(), gradient.tensor(), state.first.tensor(), state.second.tensor(),
        state.master.tensor(), Tensor::of(values.data(), {kCount}));
  for (std::int64_t i = 0; i < kCount; ++i) {
    EXPECT_EQ(values[static_cast<std::size_t>(i)].bits, BFloat16(state.master[i]).bits);
  }
}

TEST_F(AdamW, TheFirstStepMovesEveryParameterByTheLearningRate) {
  constexpr std::int64_t kCount = 37;
  State state(kCount);
  Random gradient = gradient_of(1, kCount);
  const Random before("master", {kCount});
  AdamWSettings settings = kSettings;
  settings.weight_decay = 0;
  state.update(stream, Control(1).tensor(), gradient.tensor(), 0, kCount, settings);
  for (std::int64_t i = 0; i < kCount; ++i) {
    EXPECT_NEAR(state.master[i] - before[i], gradient[i] > 0 ? -settings.lr : settings.lr, 1e-6);
  }
}

TEST_F(AdamW, ManyStepsLaterNothingIsCorrectedAnyMore) {
  State state(1);
  Guarded<float> gradient({1}, 1.0f);
  state.first[0] = 1, state.second[0] = 1;
  AdamWSettings settings = kSettings;
  settings.weight_decay = 0;
  const float before = state.master[0];
  state.update(stream, Control(1'000'000'000, 1.0f).tensor(), gradient.tensor(), 0, 1, settings);
  EXPECT_NEAR(state.master[0], before - settings.lr, 1e-7);
}

TEST_F(AdamW, AScaleOfZeroTouchesNothing) {
  constexpr std::int64_t kCount = 37;
  State state(kCount);
  const Random before("master", {kCount});
  Guarded<float> gradient({kCount}, std::numeric_limits<float>::quiet_NaN());
  state.value[0] = 7;
  state.update(stream, Control(1, 0.0f).tensor(), gradient.tensor(), 0, kCount);
  EXPECT_TRUE(oracle::same_bits(state.master.values(), before.values()));
  for (std::int64_t i = 0; i < kCount; ++i) EXPECT_EQ(state.first[i] + state.second[i], 0);
  EXPECT_EQ(state.value[0], 7);
}

/// step_control on one loss and squared norm, after `before` updates.
struct Controlled {
  Controlled(Stream& stream, float loss, float norm_squared, std::int32_t before) {
    Tensor count = Tensor::of(&updates, {1});
    updates = before;
    step_control(stream, Tensor::of(&loss, {1}), Tensor::of(&norm_squared, {1}), 1.5f, kSettings.beta1, kSettings.beta2,
                 count, out.tensor());
  }
  std::int32_t updates = 0;
  Overwritten out{{3}};
};

TEST_F(AdamW, ControlClipsCorrectsAndCounts) {
  for (const std::int32_t before : {0, 1, 9, 100'000}) {
    Control expected(before + 1, 0.5f);
    Controlled large(stream, 2.0f, 9.0f, before), small(stream, 2.0f, 2.25f, before);
    EXPECT_TRUE(oracle::same_bits(large.out.values(), {expected.tensor().as<float>(), 3}));
    EXPECT_EQ(small.out[0], 1.0f);
    EXPECT_EQ(large.updates, before + 1);
  }
}

TEST_F(AdamW, ControlSkipsWhatIsNotFinite) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad : {kNaN, kInfinity}) {
    for (const bool in_loss : {true, false}) {
      Controlled skipped(stream, in_loss ? bad : 1.0f, in_loss ? 1.0f : bad, 5);
      EXPECT_EQ(skipped.out[0], 0.0f);
      EXPECT_EQ(skipped.updates, 5);
    }
  }
}

TEST_F(AdamW, NamesTheWrongTensor) {
  State state(8);
  Random gradient = gradient_of(1, 9);
  EXPECT_EQ(error_of([&] {
              adamw(stream, kSettings, Control(1).tensor(), gradient.tensor(), state.first.tensor(), state.second.tensor(),
                    state.master.tensor(), state.value.tensor());
            }),
            "adamw: first_moment is float32 [8], expected float32 of 9 elements");
  EXPECT_EQ(error_of([&] { state.update(stream, gradient.tensor(), gradient.tensor(), 0, 8); }),
            "adamw: control is float32 [9], expected float32 of 3 elements");
}

}  // namespace
}  // namespace dm
