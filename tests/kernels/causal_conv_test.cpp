// The causal convolution with SiLU: values, gradients, and sequences fed in pieces.
#include "kernels/causal_conv.h"

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

struct Extents {
  std::int64_t batch, tokens, channels, taps;
  Shape sequence() const { return {batch, tokens, channels}; }
  Shape filter() const { return {channels, taps}; }
  Shape history() const { return {batch, taps - 1, channels}; }
};

std::vector<double> exact_forward(const Extents& e, const std::vector<double>& x, const std::vector<double>& weight,
                                  const std::vector<double>& bias, const std::vector<double>& history = {}) {
  std::vector<double> out;
  const auto input = [&](std::int64_t b, std::int64_t t, std::int64_t c) {
    if (t >= 0) return x[static_cast<std::size_t>((b * e.tokens + t) * e.channels + c)];
    if (history.empty()) return 0.0;
    return history[static_cast<std::size_t>((b * (e.taps - 1) + t + e.taps - 1) * e.channels + c)];
  };
  for (std::int64_t b = 0; b < e.batch; ++b) {
    for (std::int64_t t = 0; t < e.tokens; ++t) {
      for (std::int64_t c = 0; c < e.channels; ++c) {
        double p = bias[static_cast<std::size_t>(c)];
        for (std::int64_t w = 0; w < e.taps; ++w) {
          p += weight[static_cast<std::size_t>(c * e.taps + w)] * input(b, t - e.taps + 1 + w, c);
        }
        out.push_back(p / (1 + std::exp(-p)));
      }
    }
  }
  return out;
}

// Channels around the widths of a register and of a tile, tokens around those of a block and fewer than taps, all taps.
const Extents kExtents[] = {{1, 1, 1, 4},    {2, 5, 37, 4},  {1, 2, 16, 4},  {2, 3, 5, 2},  {1, 7, 3, 3},  {2, 9, 515, 4},
                            {1, 17, 512, 4}, {3, 4, 600, 5}, {1, 10, 17, 6}, {2, 12, 4, 7}, {1, 20, 33, 8}};

class CausalConv : public ::testing::Test {
 protected:
  Stream stream{Device::cpu()};
};

TEST_F(CausalConv, ForwardWithAndWithoutHistory) {
  for (const Extents& e : kExtents) {
    Random x("x", e.sequence()), weight("weight", e.filter()), bias("bias", {e.channels}), history("history", e.history());
    Overwritten out(e.sequence()), again(e.sequence()), continued(e.sequence());
    causal_conv_silu_forward(stream, x.tensor(), weight.tensor(), bias.tensor(), Tensor(), out.tensor());
    causal_conv_silu_forward(stream, x.tensor(), weight.tensor(), bias.tensor(), Tensor(), again.tensor());
    EXPECT_CLOSE(out, exact_forward(e, x.as_double(), weight.as_double(), bias.as_double()), 1e-6);
    EXPECT_TRUE(oracle::same_bits(out.values(), again.values()));
    const auto expected = exact_forward(e, x.as_double(), weight.as_double(), bias.as_double(), history.as_double());
    causal_conv_silu_forward(stream, x.tensor(), weight.tensor(), bias.tensor(), history.tensor(), continued.tensor());
    EXPECT_CLOSE(continued, expected, 1e-6) << e.channels << " channels, " << e.taps << " taps";
  }
}

TEST_F(CausalConv, ASequenceInPiecesIsTheWholeSequence) {
  const Extents e{2, 23, 37, 4};
  Random x("x", e.sequence()), weight("weight", e.filter()), bias("bias", {e.channels});
  Overwritten whole(e.sequence());
  causal_conv_silu_forward(stream, x.tensor(), weight.tensor(), bias.tensor(), Tensor(), whole.tensor());
  for (const std::int64_t piece : {1, 2, 3, 4, 10, 23}) {
    Guarded<float> history(e.history(), 0.0f);
    for (std::int64_t begin = 0; begin < e.tokens; begin += piece) {
      const std::int64_t count = std::min(piece, e.tokens - begin);
      const Shape shape{e.batch, count, e.channels};
      Overwritten part(shape), out(shape);
      const auto at = [&](std::int64_t b, std::int64_t t, std::int64_t c) { return (b * e.tokens + t) * e.channels + c; };
      for (std::int64_t i = 0; i < shape.numel(); ++i) {
        const std::int64_t b = i / (count * e.channels), t = i / e.channels % count, c = i % e.channels;
        part[i] = x[at(b, begin + t, c)];
      }
      causal_conv_silu_forward(stream, part.tensor(), weight.tensor(), bias.tensor(), history.tensor(), out.tensor());
      for (std::int64_t i = 0; i < shape.numel(); ++i) {
        const std::int64_t b = i / (count * e.channels), t = i / e.channels % count, c = i % e.channels;
        ASSERT_EQ(out[i], whole[at(b, begin + t, c)]) << "pieces of " << piece << ", token " << begin + t;
      }
    }
    for (std::int64_t i = 0; i < e.history().numel(); ++i) {  // ends as the last three inputs, oldest first
      const std::int64_t b = i / (3 * e.channels), row = i / e.channels % 3, c = i % e.channels;
      ASSERT_EQ(history[i], x[(b * e.tokens + e.tokens - 3 + row) * e.channels + c]);
    }
  }
}

TEST_F(CausalConv, BackwardIsTheGradient) {
  for (const Extents& e : {Extents{1, 1, 1, 4}, {2, 11, 37, 4}, {1, 2, 5, 4}, {2, 8, 5, 2}, {1, 9, 19, 3}, {1, 18, 17, 8}}) {
    Random dout("dout", e.sequence()), x("x", e.sequence()), weight("weight", e.filter()), bias("bias", {e.channels});
    std::vector<double> xs = x.as_double(), ws = weight.as_double(), bs = bias.as_double();
    const std::vector<double> cotangent = dout.as_double();
    const auto loss = [&] { return oracle::dot(exact_forward(e, xs, ws, bs), cotangent); };
    const auto expected_dx = oracle::finite_differences(xs, loss);
    auto expected_dweight = oracle::finite_differences(ws, loss), expected_dbias = oracle::finite_differences(bs, loss);
    for (double& value : expected_dweight) value += 2;
    for (double& value : expected_dbias) value += 3;

    Overwritten dx(e.sequence());
    Guarded<float> dweight(e.filter(), 2.0f), dbias({e.channels}, 3.0f);
    causal_conv_silu_backward(stream, dout.tensor(), {}, x.tensor(), weight.tensor(), bias.tensor(), dx.tensor(),
                              dweight.tensor(), dbias.tensor());
    EXPECT_CLOSE(dx, expected_dx, 2e-6) << e.channels << " channels, " << e.taps << " taps";
    EXPECT_CLOSE(dweight, expected_dweight, 2e-6);
    EXPECT_CLOSE(dbias, expected_dbias, 2e-6);
  }
}

TEST_F(CausalConv, BackwardTakesACotangentThatIsStillAProduct) {
  const Extents e{2, 11, 37, 4};
  constexpr std::int64_t kOutputs = 9;
  Random dout("dout", e.sequence()), x("x", e.sequence()), weight("weight", e.filter()), bias("bias", {e.channels});
  Random dy("dy", {e.batch, e.tokens, kOutputs}), projection("projection", {kOutputs, e.channels});
  Overwritten whole(e.sequence()), dx(e.sequence()), expected_dx(e.sequence());
  for (std::int64_t i = 0; i < e.sequence().numel(); ++i) {
    double sum = dout[i];
    for (std::int64_t k = 0; k < kOutputs; ++k) {
      sum += static_cast<double>(dy[i / e.channels * kOutputs + k]) * projection[k * e.channels + i % e.channels];
    }
    whole[i] = static_cast<float>(sum);
  }
  Guarded<float> dweight(e.filter(), 2.0f), dbias({e.channels}, 3.0f);
  Guarded<float> expected_dweight(e.filter(), 2.0f), expected_dbias({e.channels}, 3.0f);
  causal_conv_silu_backward(stream, whole.tensor(), {}, x.tensor(), weight.tensor(), bias.tensor(), expected_dx.tensor(),
                            expected_dweight.tensor(), expected_dbias.tensor());
  causal_conv_silu_backward(stream, dout.tensor(), {dy.tensor(), projection.tensor()}, x.tensor(), weight.tensor(),
                            bias.tensor(), dx.tensor(), dweight.tensor(), dbias.tensor());
  EXPECT_CLOSE(dx, expected_dx.as_double(), 1e-6);
  EXPECT_CLOSE(dweight, expected_dweight.as_double(), 1e-6);
  EXPECT_CLOSE(dbias, expected_dbias.as_double(), 1e-6);
}

TEST_F(CausalConv, AChannelDoesNotDependOnWhichOthersAreThere) {
  // All channels, and those around the border of two tiles alone: in other registers, with other neighbours.
  const Extents all{2, 9, 523, 4}, few{2, 9, 21, 4};
  constexpr std::int64_t kFirst = 500;
  Random dout("dout", all.sequence()), x("x", all.sequence()), weight("weight", all.filter()), bias("bias", {523});
  Overwritten dout_few(few.sequence()), x_few(few.sequence());
  const auto from = [&](std::int64_t i) { return i / few.channels * all.channels + kFirst + i % few.channels; };
  for (std::int64_t i = 0; i < few.sequence().numel(); ++i) {
    dout_few[i] = dout[from(i)];
    x_few[i] = x[from(i)];
  }

  Overwritten dx(all.sequence()), dx_few(few.sequence());
  Guarded<float> dweight(all.filter(), 0.5f), dbias({all.channels}, 0.5f);
  Guarded<float> dweight_few(few.filter(), 0.5f), dbias_few({few.channels}, 0.5f);
  for (int pass = 0; pass < 2; ++pass) {  // gradients accumulate
    causal_conv_silu_backward(stream, dout.tensor(), {}, x.tensor(), weight.tensor(), bias.tensor(), dx.tensor(),
                              dweight.tensor(), dbias.tensor());
    causal_conv_silu_backward(stream, dout_few.tensor(), {}, x_few.tensor(), weight.tensor().slice(kFirst, few.channels),
                              bias.tensor().slice(kFirst, few.channels), dx_few.tensor(), dweight_few.tensor(),
                              dbias_few.tensor());
  }
  for (std::int64_t i = 0; i < few.sequence().numel(); ++i) ASSERT_EQ(dx_few[i], dx[from(i)]);
  for (std::int64_t i = 0; i < few.filter().numel(); ++i) ASSERT_EQ(dweight_few[i], dweight[kFirst * all.taps + i]);
  for (std::int64_t i = 0; i < few.channels; ++i) ASSERT_EQ(dbias_few[i], dbias[kFirst + i]);
}

TEST_F(CausalConv, InputAndItsCotangentMayBeColumnsOfSomethingWider) {
  const Extents e{2, 19, 21, 4};
  const std::int64_t D = e.channels, rows = e.batch * e.tokens;
  Random dout("dout", e.sequence()), x("x", e.sequence()), weight("weight", e.filter()), bias("bias", {D});
  Guarded<float> wide({e.batch, e.tokens, 3 * D}, -5.0f), wide_dx({e.batch, e.tokens, 2 * D}, -5.0f);
  for (std::int64_t i = 0; i < rows * D; ++i) wide[i / D * 3 * D + D + i % D] = x[i];
  const Matrix x_part = Matrix(wide.tensor()).columns_of(D, D), dx_part = Matrix(wide_dx.tensor()).columns_of(D, D);
  Overwritten out(e.sequence()), wide_out(e.sequence()), dx(e.sequence());
  Guarded<float> history(e.history(), 0.5f), wide_history(e.history(), 0.5f);
  causal_conv_silu_forward(stream, x.tensor(), weight.tensor(), bias.tensor(), history.tensor(), out.tensor());
  causal_conv_silu_forward(stream, x_part, weight.tensor(), bias.tensor(), wide_history.tensor(), wide_out.tensor());
  EXPECT_TRUE(oracle::same_bits(out.values(), wide_out.values()));
  EXPECT_TRUE(oracle::same_bits(history.values(), wide_history.values()));
  Guarded<float> dweight(e.filter(), 0.0f), dbias({D}, 0.0f);
  causal_conv_silu_backward(stream, dout.tensor(), {}, x.tensor(), weight.tensor(), bias.tensor(), dx.tensor(),
                            dweight.tensor(), dbias.tensor());
  causal_conv_silu_backward(stream, dout.tensor(), {}, x_part, weight.tensor(), bias.tensor(), dx_part, dweight.tensor(),
                            dbias.tensor());
  for (std::int64_t i = 0; i < rows * D; ++i) {
    ASSERT_EQ(wide_dx[i / D * 2 * D + D + i % D], dx[i]);
    ASSERT_EQ(wide_dx[i / D * 2 * D + i % D], -5.0f);
  }
}

TEST_F(CausalConv, NamesTheWrongTensor) {
  Random x("x", {2, 5, 8}), out("out", {2, 5, 8}), weight("weight", {8, 4}), bias("bias", {8}), wide("wide", {8, 9});
  const auto forward = [&](const Tensor& input, const Tensor& filter, const Tensor& history, const Tensor& output) {
    return error_of([&] { causal_conv_silu_forward(stream, input, filter, bias.tensor(), history, output); });
  };
  EXPECT_EQ(forward(x.tensor(), weight.tensor(), Tensor(), out.tensor().reshaped({10, 8})),
            "causal_conv_silu_forward: out must be [batch, tokens, channels]");
  EXPECT_EQ(forward(x.tensor().slice(0, 1), weight.tensor(), Tensor(), out.tensor()),
            "causal_conv_silu_forward: x is float32 [1, 5, 8], expected float32 [10 rows, 8]");
  EXPECT_EQ(forward(x.tensor(), wide.tensor(), Tensor(), out.tensor()),
            "causal_conv_silu_forward: weight must be [channels, taps] with 2 to 8 taps");
  EXPECT_EQ(forward(x.tensor(), weight.tensor().slice(0, 7), Tensor(), out.tensor()),
            "causal_conv_silu_forward: weight is float32 [7, 4], expected float32 [8, 4]");
  EXPECT_EQ(forward(x.tensor(), weight.tensor(), out.tensor(), out.tensor()),
            "causal_conv_silu_forward: history is float32 [2, 5, 8], expected float32 [2, 3, 8]");
  EXPECT_EQ(error_of([&] {
              causal_conv_silu_backward(stream, out.tensor(), {}, x.tensor(), weight.tensor(), bias.tensor(),
                                        out.tensor().slice(0, 1), weight.tensor(), bias.tensor());
            }),
            "causal_conv_silu_backward: dx is float32 [1, 5, 8], expected float32 [10 rows, 8]");
}

}  // namespace
}  // namespace dm
