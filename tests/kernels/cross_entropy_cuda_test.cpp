// Cross-entropy on the GPU against the CPU: rows of any width, padding, shards, gradients in place, non-finite logits.
#include "kernels/cross_entropy.h"

#include <limits>

#include <fmt/format.h>

#include "tests/kernels/cuda_oracle.h"

namespace dm {
namespace {

using oracle::Side;
using oracle::Twin;

struct Case {
  std::int64_t rows, columns, valid, first, offset;
};
constexpr Case kCases[] = {{3, 1, 1, 0, 0},           {5, 100, 100, 0, 0},
                           {5, 104, 97, 0, 0},        {5, 128, 0, 100, 0},
                           {7, 128, 128, 50, 1},      {3, 8200, 8195, 0, 0},
                           {2, 8200, 8195, 0, 4},     {40, 32'000, 32'000, 0, 0},
                           {9, 50'304, 50'257, 0, 0}, {6, 16'000, 15'990, 16'000, 0},
                           {2000, 64, 64, 0, 0}};

std::string name_of(const Case& at, DType dtype) {
  return fmt::format("{} rows of {}, {} valid from {}, offset {}, {}", at.rows, at.columns, at.valid, at.first, at.offset,
                     name_of(dtype));
}

class CrossEntropyCuda : public oracle::CudaTest {
 protected:
  Twin& targets(const Case& at) { return tokens({at.rows}, at.first + at.valid + at.valid / 2 + 1); }
};

TEST_F(CrossEntropyCuda, Stats) {
  for (const DType dtype : oracle::kComputeTypes) {
    for (const Case& at : kCases) {
      set_offset(at.offset);
      Twin &logits = random("logits", {at.rows, at.columns}, dtype, 5.0f), &target = targets(at),
           &stats = overwritten({at.rows, 3});
      compare(
          [&](Stream& stream, Side on) {
            cross_entropy_stats(stream, on(logits), on(target), {at.first, at.valid}, on(stats));
          },
          {stats}, name_of(at, dtype));
      clear();
    }
  }
}

TEST_F(CrossEntropyCuda, FinishOverShards) {
  for (const DType dtype : oracle::kComputeTypes) {
    for (const std::int64_t shards : {1, 2, 5}) {
      for (const Case& at : kCases) {
        set_offset(at.offset);
        Twin &logits = random("logits", {at.rows, at.columns}, dtype, 5.0f), &target = targets(at);
        std::vector<float> values;
        for (std::int64_t i = 0; i < shards * at.rows; ++i) {  // the last shard has no valid column
          const bool empty = shards > 1 && i / at.rows == shards - 1;
          values.insert(values.end(), {empty ? -std::numeric_limits<float>::infinity() : 25.0f + static_cast<float>(i % 3),
                                       empty ? 0.0f : 3.0f + static_cast<float>(i % 7), static_cast<float>(i % 2)});
        }
        Twin &stats = of({shards, at.rows, 3}, values), &losses = overwritten({at.rows});
        compare(
            [&](Stream& stream, Side on) {
              cross_entropy_finish(stream, on(logits), on(target), {at.first, at.valid}, on(stats), 0.25f, on(losses));
            },
            {logits, losses}, name_of(at, dtype));
        clear();
      }
    }
  }
}

TEST_F(CrossEntropyCuda, LossAndGradientOfAWholeVocabulary) {
  for (const DType dtype : oracle::kComputeTypes) {
    for (const Case& at : {Case{64, 32'000, 32'000, 0, 0}, Case{8, 50'304, 50'257, 0, 0}, Case{300, 100, 100, 0, 0}}) {
      Twin &logits = random("logits", {at.rows, at.columns}, dtype, 3.0f), &target = tokens({at.rows}, at.valid);
      Twin &stats = overwritten({1, at.rows, 3}), &losses = overwritten({at.rows});
      compare(
          [&](Stream& stream, Side on) {
            cross_entropy_stats(stream, on(logits), on(target), {0, at.valid}, on(stats).reshaped({at.rows, 3}));
            cross_entropy_finish(stream, on(logits), on(target), {0, at.valid}, on(stats), 0.125f, on(losses));
          },
          {stats, logits, losses}, name_of(at, dtype));
      clear();
    }
  }
}

TEST_F(CrossEntropyCuda, AScaleOfZeroLeavesTheLogits) {
  Twin &logits = random("logits", {5, 104}, DType::bf16), &target = tokens({5}, 100), &losses = overwritten({5});
  Twin& stats = of({1, 5, 3}, {1, 2, 0.5f, 1, 3, 0.5f, 2, 2, 0, 1, 1, 1, 3, 2, 2});
  compare(
      [&](Stream& stream, Side on) {
        cross_entropy_finish(stream, on(logits), on(target), {0, 100}, on(stats), 0.0f, on(losses));
      },
      {losses}, "no scale");
}

TEST_F(CrossEntropyCuda, ANonFiniteLogitMakesItsLossNonFiniteAndNoOther) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const DType dtype : oracle::kComputeTypes) {
    for (const std::int64_t columns : {104, 103}) {
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
        for (const std::int64_t place : {0, 50, 99}) {
          std::vector<float> values(static_cast<std::size_t>(3 * columns), 0.5f);
          values[static_cast<std::size_t>(columns + place)] = bad;
          Twin &logits = of({3, columns}, values, dtype), &target = of({3}, {1, 2, 3}, DType::i32);
          Twin &stats = overwritten({1, 3, 3}), &losses = overwritten({3});
          cross_entropy_stats(gpu(), logits.gpu(), target.gpu(), {0, 100}, stats.gpu().reshaped({3, 3}));
          cross_entropy_finish(gpu(), logits.gpu(), target.gpu(), {0, 100}, stats.gpu(), 0.0f, losses.gpu());
          const float loss = std::log(100.0f);
          std::copy_n(std::vector<float>{loss, std::nanf(""), loss}.data(), 3, losses.cpu().as<float>());
          EXPECT_TRUE(losses.agrees(losses.memory(), 1e-6)) << bad << " at " << place << " of " << columns;
          clear();
        }
      }
    }
  }
}

TEST_F(CrossEntropyCuda, LargeLogitsDoNotOverflow) {
  Twin &logits = random("logits", {4, 1000}, DType::f32, 1000.0f, 1e4f), &target = tokens({4}, 1000);
  Twin &stats = overwritten({1, 4, 3}), &losses = overwritten({4});
  compare(
      [&](Stream& stream, Side on) {
        cross_entropy_stats(stream, on(logits), on(target), {0, 1000}, on(stats).reshaped({4, 3}));
        cross_entropy_finish(stream, on(logits), on(target), {0, 1000}, on(stats), 1.0f, on(losses));
      },
      {stats, logits, losses}, "large logits");
}

}  // namespace
}  // namespace dm
