// RMSNorm with residual addition against its formula in double, and its backward against finite differences.
#include "kernels/rmsnorm.h"

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

struct Exact {
  std::vector<double> sum, out, rstd;
};

Exact exact_forward(const std::vector<double>& residual, const std::vector<double>& update,
                    const std::vector<double>& weight) {
  const std::size_t columns = weight.size();
  Exact exact{residual, residual, {}};
  for (std::size_t i = 0; i < update.size(); ++i) exact.sum[i] += update[i];
  for (std::size_t row = 0; row < residual.size() / columns; ++row) {
    double squares = 0;
    for (std::size_t c = 0; c < columns; ++c) squares += exact.sum[row * columns + c] * exact.sum[row * columns + c];
    exact.rstd.push_back(1 / std::sqrt(squares / static_cast<double>(columns) + static_cast<double>(kRmsNormEpsilon)));
    for (std::size_t c = 0; c < columns; ++c) {
      exact.out[row * columns + c] = exact.sum[row * columns + c] * exact.rstd[row] * weight[c];
    }
  }
  return exact;
}

class RmsNorm : public ::testing::Test {
 protected:
  Stream stream{Device::cpu()};
};

TEST_F(RmsNorm, ForwardAddsAndNormalises) {
  for (const std::int64_t columns : {1, 5, 16, 37, 256, 515}) {
    const Shape shape{2, 3, columns};
    Random residual("residual", shape, 3.0f), update("update", shape), weight("weight", {columns}, 0.5f, 1.0f);
    const Exact exact = exact_forward(residual.as_double(), update.as_double(), weight.as_double());
    Overwritten sum(shape), out(shape), rstd({6}), again(shape);
    add_rmsnorm_forward(stream, residual.tensor(), update.tensor(), Tensor(), weight.tensor(), sum.tensor(), out.tensor(),
                        rstd.tensor());
    EXPECT_CLOSE(sum, exact.sum, 1e-7) << columns;
    EXPECT_CLOSE(out, exact.out, 4e-7) << columns;
    EXPECT_CLOSE(rstd, exact.rstd, 3e-7) << columns;
    add_rmsnorm_forward(stream, residual.tensor(), update.tensor(), Tensor(), weight.tensor(), sum.tensor(), again.tensor(),
                        rstd.tensor());
    EXPECT_TRUE(oracle::same_bits(out.values(), again.values()));
  }
}

TEST_F(RmsNorm, MoreOfTheUpdateAndOfItsCotangentIsAdded) {
  constexpr std::int64_t kRows = 6, kMore = 2;
  for (const std::int64_t columns : {1, 37, 256}) {
    const Shape shape{kRows, columns};
    Random residual("residual", shape, 3.0f), update("update", shape), more("more", {kMore, kRows, columns});
    Random weight("weight", {columns}, 0.5f, 1.0f);
    std::vector<double> total = update.as_double();
    for (std::size_t i = 0; i < kMore * total.size(); ++i) total[i % total.size()] += more.as_double()[i];
    const Exact exact = exact_forward(residual.as_double(), total, weight.as_double());
    Overwritten sum(shape), out(shape), rstd({kRows});
    add_rmsnorm_forward(stream, residual.tensor(), update.tensor(), more.tensor(), weight.tensor(), sum.tensor(),
                        out.tensor(), rstd.tensor());
    EXPECT_CLOSE(sum, exact.sum, 2e-7) << columns;
    EXPECT_CLOSE(out, exact.out, 6e-7) << columns;

    Guarded<float> whole(shape, 0.0f);
    for (std::size_t i = 0; i < total.size(); ++i) whole[static_cast<std::int64_t>(i)] = static_cast<float>(total[i]);
    Random found("dresidual", shape), expected("dresidual", shape), dweight("dweight", {columns}),
        same("dweight", {columns});
    Overwritten copy(shape);
    rmsnorm_backward(stream, whole.tensor(), Tensor(), out.tensor(), rstd.tensor(), weight.tensor(), expected.tensor(),
                     Tensor(), same.tensor());
    rmsnorm_backward(stream, update.tensor(), more.tensor(), out.tensor(), rstd.tensor(), weight.tensor(), found.tensor(),
                     copy.tensor(), dweight.tensor());
    EXPECT_CLOSE(found, expected.as_double(), 1e-6) << columns;
    EXPECT_CLOSE(dweight, same.as_double(), 1e-6) << columns;
    EXPECT_TRUE(oracle::same_bits(copy.values(), found.values()));
  }
}

TEST_F(RmsNorm, InPlaceGivesTheSameBits) {
  const Shape shape{4, 37};
  Random residual("residual", shape), update("update", shape), weight("weight", {37});
  Overwritten sum(shape), out(shape), out_in_place(shape), rstd({4});
  add_rmsnorm_forward(stream, residual.tensor(), update.tensor(), Tensor(), weight.tensor(), sum.tensor(), out.tensor(),
                      rstd.tensor());
  add_rmsnorm_forward(stream, residual.tensor(), update.tensor(), Tensor(), weight.tensor(), residual.tensor(),
                      out_in_place.tensor(), rstd.tensor());
  EXPECT_TRUE(oracle::same_bits(sum.values(), residual.values()));
  EXPECT_TRUE(oracle::same_bits(out.values(), out_in_place.values()));
}

TEST_F(RmsNorm, WithoutUpdateTheResidualIsKeptOrCopied) {
  const Shape shape{4, 37};
  Random residual("residual", shape), same("residual", shape), weight("weight", {37});
  const Exact exact = exact_forward(residual.as_double(), {}, weight.as_double());
  Overwritten copy(shape), out(shape), rstd({4});
  add_rmsnorm_forward(stream, residual.tensor(), Tensor(), Tensor(), weight.tensor(), residual.tensor(), out.tensor(),
                      rstd.tensor());
  EXPECT_TRUE(oracle::same_bits(residual.values(), same.values()));
  EXPECT_CLOSE(out, exact.out, 4e-7);
  add_rmsnorm_forward(stream, residual.tensor(), Tensor(), Tensor(), weight.tensor(), copy.tensor(), out.tensor(),
                      rstd.tensor());
  EXPECT_TRUE(oracle::same_bits(copy.values(), same.values()));
}

TEST_F(RmsNorm, ARowOfZerosIsFinite) {
  Guarded<float> residual({1, 16}, 0.0f), weight({16}, 2.0f);
  Overwritten out({1, 16}), rstd({1});
  add_rmsnorm_forward(stream, residual.tensor(), Tensor(), Tensor(), weight.tensor(), residual.tensor(), out.tensor(),
                      rstd.tensor());
  EXPECT_NEAR(rstd[0], 1 / std::sqrt(kRmsNormEpsilon), 1e-3);
  for (const float value : out.values()) EXPECT_EQ(value, 0.0f);
}

TEST_F(RmsNorm, BackwardIsTheGradient) {
  for (const std::int64_t columns : {1, 5, 16, 37}) {
    const Shape shape{3, columns};
    Random dout("dout", shape), residual("residual", shape), weight("weight", {columns}, 0.5f, 1.0f);
    Random dresidual("dresidual", shape), dweight("dweight", {columns});
    std::vector<double> x = residual.as_double(), w = weight.as_double();
    const auto loss = [&] { return oracle::dot(exact_forward(x, {}, w).out, dout.as_double()); };
    std::vector<double> expected_dx = oracle::finite_differences(x, loss), expected_dw = oracle::finite_differences(w, loss);
    for (std::size_t i = 0; i < x.size(); ++i) expected_dx[i] += dresidual.as_double()[i];
    for (std::size_t i = 0; i < w.size(); ++i) expected_dw[i] += dweight.as_double()[i];

    Overwritten out(shape), rstd({3}), dupdate(shape);
    add_rmsnorm_forward(stream, residual.tensor(), Tensor(), Tensor(), weight.tensor(), residual.tensor(), out.tensor(),
                        rstd.tensor());
    rmsnorm_backward(stream, dout.tensor(), Tensor(), out.tensor(), rstd.tensor(), weight.tensor(), dresidual.tensor(),
                     dupdate.tensor(), dweight.tensor());
    EXPECT_CLOSE(dresidual, expected_dx, 1e-6) << columns;
    EXPECT_TRUE(oracle::same_bits(dupdate.values(), dresidual.values()));
    EXPECT_CLOSE(dweight, expected_dw, 1e-6) << columns;

    Random dresidual_again("dresidual", shape), dweight_again("dweight", {columns});
    rmsnorm_backward(stream, dout.tensor(), Tensor(), out.tensor(), rstd.tensor(), weight.tensor(), dresidual_again.tensor(),
                     Tensor(), dweight_again.tensor());
    EXPECT_TRUE(oracle::same_bits(dresidual.values(), dresidual_again.values()));
    EXPECT_TRUE(oracle::same_bits(dweight.values(), dweight_again.values()));
  }
}

TEST_F(RmsNorm, BackwardMayWriteItsCopyOverWhatItRead) {
  const Shape shape{3, 37};
  Random weight("weight", {37}, 0.5f, 1.0f), rstd("rstd", {3}, 0.1f, 1.0f);
  Random sum("dresidual", shape), dweight("dweight", {37});
  Random dout("dout", shape), x("x", shape);
  Overwritten copy(shape);
  rmsnorm_backward(stream, dout.tensor(), Tensor(), x.tensor(), rstd.tensor(), weight.tensor(), sum.tensor(), copy.tensor(),
                   dweight.tensor());
  for (const bool over_x : {true, false}) {
    Random again("dresidual", shape), dweight_again("dweight", {37}), dout_again("dout", shape), x_again("x", shape);
    Random& overwritten = over_x ? x_again : dout_again;
    rmsnorm_backward(stream, dout_again.tensor(), Tensor(), x_again.tensor(), rstd.tensor(), weight.tensor(), again.tensor(),
                     overwritten.tensor(), dweight_again.tensor());
    EXPECT_TRUE(oracle::same_bits(again.values(), sum.values()));
    EXPECT_TRUE(oracle::same_bits(overwritten.values(), copy.values()));
    EXPECT_TRUE(oracle::same_bits(dweight_again.values(), dweight.values()));
  }
}

TEST_F(RmsNorm, AWeightOfZeroGetsNoGradientAndPassesNoneOn) {
  const Shape shape{2, 4};
  Random dout("dout", shape), x("x", shape), rstd("rstd", {2}, 0.1f, 1.0f), dweight("dweight", {4});
  const std::vector<double> before = dweight.as_double();
  Guarded<float> weight({4}, 1.0f), dresidual(shape, 0.0f);
  for (const int column : {1, 2}) {
    weight[column] = column == 1 ? 0.0f : -1e-40f;
    x[column] = x[4 + column] = 0.0f;
  }
  rmsnorm_backward(stream, dout.tensor(), Tensor(), x.tensor(), rstd.tensor(), weight.tensor(), dresidual.tensor(), Tensor(),
                   dweight.tensor());
  for (int column = 0; column < 4; ++column) {
    const bool zero = column == 1 || column == 2;
    EXPECT_EQ(static_cast<double>(dweight[column]) == before[static_cast<std::size_t>(column)], zero) << column;
    EXPECT_EQ(std::abs(dresidual[column]) < 1e-30f, zero) << column;
  }
}

TEST_F(RmsNorm, NamesTheWrongTensor) {
  Random x("x", {3, 8}), y("y", {3, 8}), weight("weight", {8}), rstd("rstd", {3}), short_weight("w", {7});
  EXPECT_EQ(error_of([&] {
              add_rmsnorm_forward(stream, x.tensor(), Tensor(), Tensor(), short_weight.tensor(), x.tensor(), y.tensor(),
                                  rstd.tensor());
            }),
            "add_rmsnorm_forward: residual is float32 [3, 8], expected float32 [3 rows, 7]");
  EXPECT_EQ(error_of([&] {
              add_rmsnorm_forward(stream, x.tensor(), y.tensor().slice(0, 2), Tensor(), weight.tensor(), x.tensor(),
                                  y.tensor(), rstd.tensor());
            }),
            "add_rmsnorm_forward: update is float32 [2, 8], expected float32 [3 rows, 8]");
  EXPECT_EQ(error_of([&] {
              rmsnorm_backward(stream, y.tensor(), Tensor(), x.tensor().slice(0, 2), rstd.tensor(), weight.tensor(),
                               y.tensor(), Tensor(), weight.tensor());
            }),
            "rmsnorm_backward: dout is float32 [3, 8], expected float32 [2 rows, 8]");
  EXPECT_EQ(error_of([&] {
              rmsnorm_backward(stream, y.tensor(), Tensor(), x.tensor(), rstd.tensor().slice(0, 2), weight.tensor(),
                               y.tensor(), Tensor(), weight.tensor());
            }),
            "rmsnorm_backward: rstd is float32 [2], expected float32 of 3 elements");
  EXPECT_EQ(error_of([&] {
              rmsnorm_backward(stream, y.tensor(), Tensor(), x.tensor(), rstd.tensor(), weight.tensor(), y.tensor(),
                               Tensor(), Tensor());
            }),
            "rmsnorm_backward: dweight is absent, expected float32 [8]");
}

}  // namespace
}  // namespace dm
