// The small ops and sums on the GPU against the CPU: any size and alignment, in place, large and non-finite values.
#include "kernels/elementwise.h"

#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "kernels/sum.h"
#include "tests/kernels/cuda_oracle.h"

namespace dm {
namespace {

using oracle::Side;
using oracle::Twin;

class ElementwiseCuda : public oracle::CudaTest {
 protected:
  /// Calls work(n, what) for sizes around vectors, blocks and grids, aligned to 16 and to fewer bytes.
  template <class Work>
  void for_sizes(const Work& work) {
    for (const std::int64_t offset : {0, 1, 2, 4}) {
      for (const std::int64_t n : {1, 7, 8, 9, 100, 2048, 100'003, 3'000'001}) {
        if (n > 1'000'000 && offset > 0) continue;
        set_offset(offset);
        work(n, fmt::format("{} elements, offset {}", n, offset));
        clear();
      }
    }
  }
};

TEST_F(ElementwiseCuda, FillAndAdd) {
  for_sizes([&](std::int64_t n, const std::string& what) {
    Twin &x = random("x", {n}), &y = random("y", {n}), &zeros = overwritten({n}), &ones = overwritten({n});
    compare(
        [&](Stream& stream, Side on) {
          fill(stream, on(zeros), 0.0f);
          fill(stream, on(ones), 1.5f);
          add_to(stream, on(x), on(y));
        },
        {{zeros, 0}, {ones, 0}, {y, 0}}, what);
  });
}

/// The CPU computes in float32 alone, so these two compare bits with bits.
TEST_F(ElementwiseCuda, ConvertRoundsToNearestEvenAndWidens) {
  for_sizes([&](std::int64_t n, const std::string& what) {
    const RandomStream stream(1, "x");
    std::vector<float> values(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = i % 3 == 0 ? 1.0f + static_cast<float>(2 * (i % 64) + 1) / 256.0f : stream.normal(i);  // ties, and others
    }
    Twin &x = of({n}, values), &rounded = of({n}, values, DType::bf16);
    Twin &to_bf16 = overwritten({n}, DType::bf16), &to_f32 = overwritten({n});
    convert(gpu(), x.gpu(), to_bf16.gpu());
    convert(gpu(), rounded.gpu(), to_f32.gpu());
    gpu().synchronize();
    std::copy_n(rounded.cpu().as<float>(), n, to_bf16.cpu().as<float>());
    std::copy_n(rounded.cpu().as<float>(), n, to_f32.cpu().as<float>());
    for (Twin* out : {&to_bf16, &to_f32}) {
      EXPECT_TRUE(out->agrees(out->memory(), 0)) << what;
      EXPECT_TRUE(out->guards_intact(out->memory())) << what;
    }
  });
}

TEST_F(ElementwiseCuda, SiluAndItsDerivativeAlsoInPlace) {
  for (const DType dtype : oracle::kComputeTypes) {
    for_sizes([&](std::int64_t n, const std::string& what) {
      Twin &x = random("x", {n}, dtype, 8.0f), &dy = random("dy", {n}, dtype);
      Twin &y = overwritten({n}, dtype), &dx = overwritten({n}, dtype);
      compare(
          [&](Stream& stream, Side on) {
            silu_forward(stream, on(x), on(y));
            silu_backward(stream, on(x), on(dy), on(dx));
          },
          {y, dx}, what);
      clear();
      Twin &both = random("x", {n}, dtype, 3.0f), &at = random("at", {n}, dtype), &d = random("d", {n}, dtype);
      compare(
          [&](Stream& stream, Side on) {
            silu_forward(stream, on(both), on(both));
            silu_backward(stream, on(at), on(d), on(d));
          },
          {both, d}, what + ", in place");
    });
  }
}

TEST_F(ElementwiseCuda, SiluOfExtremes) {
  const std::vector<float> values = {0.0f,  -0.0f,  1e-30f, -1e-30f, 20.0f, -20.0f,
                                     88.0f, -88.0f, 200.0f, -200.0f, 3e38f, -3e38f};
  const auto n = static_cast<std::int64_t>(values.size());
  Twin &x = of({n}, values), &y = overwritten({n});
  silu_forward(gpu(), x.gpu(), y.gpu());
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double exact = static_cast<double>(values[i]) / (1 + std::exp(-static_cast<double>(values[i])));
    y.cpu().as<float>()[i] = static_cast<float>(exact);
  }
  EXPECT_TRUE(y.agrees(y.memory(), 1e-6));
}

TEST_F(ElementwiseCuda, Sums) {
  for_sizes([&](std::int64_t n, const std::string& what) {
    Twin &x = random("x", {n}, DType::f32, 1.0f, 1.0f), &sum = of({1}, {0.5f}), &squares = of({1}, {0.25f});
    compare(
        [&](Stream& stream, Side on) {
          add_sum(stream, on(x), on(sum));
          sum_of_squares(stream, on(x), on(squares));
        },
        {{sum, 2e-7}, {squares, 2e-7}}, what);
  });
}

TEST_F(ElementwiseCuda, SumsOfNothingLargeAndNonFinite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (const std::vector<float>& values :
       {std::vector<float>{}, {1e18f, 1.0f, 3.0f}, {1.0f, std::nanf(""), 2.0f}, {kInfinity, 1.0f}, {1e30f, 1.0f}}) {
    Twin &x = of({static_cast<std::int64_t>(values.size())}, values), &sum = of({1}, {3.0f}), &squares = of({1}, {3.0f});
    compare(
        [&](Stream& stream, Side on) {
          add_sum(stream, on(x), on(sum));
          sum_of_squares(stream, on(x), on(squares));
        },
        {{sum, 2e-7}, {squares, 2e-7}}, fmt::format("{} values", values.size()));
    clear();
  }
}

}  // namespace
}  // namespace dm
