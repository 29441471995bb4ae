// AdamW on the GPU against the CPU: any size and alignment, in place and into bf16, cut in any way; its control.
#include "kernels/adamw.h"

#include <limits>

#include <fmt/format.h>

#include "tests/kernels/cuda_oracle.h"

namespace dm {
namespace {

using oracle::Side;
using oracle::Twin;

constexpr AdamWSettings kSettings{.lr = 1e-2f, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .weight_decay = 0.1f};

class AdamWCuda : public oracle::CudaTest {
 protected:
  struct State {
    Twin &gradient, &first, &second, &master, &value;
  };
  State state(std::int64_t n, DType value) {
    std::vector<float> second(static_cast<std::size_t>(n));
    const RandomStream stream(1, "second");
    for (std::size_t i = 0; i < second.size(); ++i) second[i] = stream.uniform(i);
    return {random("gradient", {n}), random("first", {n}), of({n}, second), random("master", {n}), overwritten({n}, value)};
  }
  /// An update of `s` as either side runs it, whose new values go to `value`.
  static auto update_of(const State& s, Twin& control, Twin& value) {
    return [s, &control, &value](Stream& stream, Side on) {
      adamw(stream, kSettings, on(control), on(s.gradient), on(s.first), on(s.second), on(s.master), on(value));
    };
  }
};

TEST_F(AdamWCuda, AnySizeAndAlignment) {
  for (const DType dtype : oracle::kComputeTypes) {
    for (const std::int64_t offset : {0, 1, 4, 8}) {
      for (const std::int64_t n : {1, 7, 8, 9, 1000, 100'003, 2'000'001}) {
        if (n > 1'000'000 && offset > 0) continue;
        set_offset(offset);
        const State s = state(n, dtype);
        Twin& control = of({3}, {0.5f, 1.7f, 2.3f});
        compare(update_of(s, control, s.value), {{s.first, 1e-6}, {s.second, 1e-6}, {s.master, 1e-6}, s.value},
                fmt::format("{} parameters, offset {}", n, offset));
        clear();
      }
    }
  }
}

TEST_F(AdamWCuda, ValueMayBeTheMasterItself) {
  const State s = state(1003, DType::f32);
  Twin& control = of({3}, {0.5f, 1.7f, 2.3f});
  compare(update_of(s, control, s.master), {{s.first, 1e-6}, {s.second, 1e-6}, {s.master, 1e-6}}, "in place");
}

TEST_F(AdamWCuda, TheCutOfARangeDoesNotMatter) {
  for (const DType dtype : oracle::kComputeTypes) {
    constexpr std::int64_t kCount = 203;
    const State whole = state(kCount, dtype), cut = state(kCount, dtype);
    Twin& control = of({3}, {0.5f, 1.7f, 2.3f});
    const auto update = [&](const State& s, std::int64_t begin, std::int64_t count) {
      const auto part = [&](Twin& twin) { return twin.gpu().flat(begin, count); };
      adamw(gpu(), kSettings, control.gpu(), part(s.gradient), part(s.first), part(s.second), part(s.master), part(s.value));
    };
    update(whole, 0, kCount);
    for (const std::int64_t piece : {1, 5, 16, 37, 100}) {
      for (Twin* twin : {&cut.first, &cut.second, &cut.master, &cut.value}) twin->reset();
      for (std::int64_t begin = 0; begin < kCount; begin += piece) update(cut, begin, std::min(piece, kCount - begin));
      EXPECT_EQ(cut.master.memory(), whole.master.memory()) << "pieces of " << piece;
      EXPECT_EQ(cut.value.memory(), whole.value.memory()) << "pieces of " << piece;
      EXPECT_EQ(cut.first.memory(), whole.first.memory()) << "pieces of " << piece;
      EXPECT_EQ(cut.second.memory(), whole.second.memory()) << "pieces of " << piece;
    }
    clear();
  }
}

TEST_F(AdamWCuda, AScaleOfZeroTouchesNothing) {
  const State s = state(1003, DType::bf16);
  Twin& control = of({3}, {0.0f, 1.7f, 2.3f});
  compare(update_of(s, control, s.value), {}, "skipped");
}

TEST_F(AdamWCuda, ControlClipsCorrectsCountsAndSkips) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();
  for (const float loss : {2.0f, kNaN, kInfinity}) {
    for (const float squared : {0.0f, 2.25f, 9.0f, 1e38f, kInfinity, kNaN}) {
      for (const float clip : {0.0f, 1.5f}) {
        for (const float before : {0.0f, 9.0f, 100'000.0f}) {
          Twin &loss_sum = of({1}, {loss}), &norm = of({1}, {squared}), &updates = of({1}, {before}, DType::i32);
          Twin& control = of({3}, {7, 8, 9});
          compare(
              [&](Stream& stream, Side on) {
                step_control(stream, on(loss_sum), on(norm), clip, 0.9f, 0.95f, on(updates), on(control));
              },
              {{updates, 0}, {control, 1e-7}},
              fmt::format("loss {}, norm² {}, clip {}, after {}", loss, squared, clip, before));
          clear();
        }
      }
    }
  }
}

}  // namespace
}  // namespace dm
