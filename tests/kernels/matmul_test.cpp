// The matrix product: every transpose, blocks of columns, empty extents, and what it refuses.
#include "kernels/matmul.h"

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

constexpr Transpose kNo = Transpose::no;
constexpr Transpose kYes = Transpose::yes;

/// [rows, columns] as stored: the other way round when it is read transposed.
Shape stored(std::int64_t rows, std::int64_t columns, Transpose transpose) {
  return transpose == kYes ? Shape{columns, rows} : Shape{rows, columns};
}

/// before + op(a)·op(b) in double; op(a) [m, k], op(b) [k, n].
std::vector<double> exact_product(const std::vector<double>& a, Transpose ta, const std::vector<double>& b, Transpose tb,
                                  std::vector<double> before, std::int64_t m, std::int64_t k, std::int64_t n) {
  const auto element = [](const std::vector<double>& x, Transpose t, std::int64_t row, std::int64_t column,
                          std::int64_t rows, std::int64_t columns) {
    return x[static_cast<std::size_t>(t == kYes ? column * rows + row : row * columns + column)];
  };
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      for (std::int64_t l = 0; l < k; ++l) {
        before[static_cast<std::size_t>(i * n + j)] += element(a, ta, i, l, m, k) * element(b, tb, l, j, k, n);
      }
    }
  }
  return before;
}

class Matmul : public ::testing::Test {
 protected:
  Stream stream{Device::cpu()};
};

TEST_F(Matmul, EveryTransposeAndShape) {
  constexpr std::int64_t kShapes[][3] = {{1, 1, 1},  {5, 37, 16}, {37, 16, 5},   {16, 1, 37},
                                         {1, 37, 1}, {1, 16, 5},  {37, 128, 48}, {130, 65, 67}};
  for (const auto& [m, k, n] : kShapes) {
    for (const Transpose ta : {kNo, kYes}) {
      for (const Transpose tb : {kNo, kYes}) {
        Random a("a", stored(m, k, ta)), b("b", stored(k, n, tb)), sum("c", {m, n});
        const std::vector<double> zeros(static_cast<std::size_t>(m * n));
        const auto product = exact_product(a.as_double(), ta, b.as_double(), tb, zeros, m, k, n);
        const auto total = exact_product(a.as_double(), ta, b.as_double(), tb, sum.as_double(), m, k, n);
        Overwritten c({m, n}), again({m, n});
        matmul(stream, a.tensor(), ta, b.tensor(), tb, c.tensor(), Accumulate::overwrite);
        matmul(stream, a.tensor(), ta, b.tensor(), tb, again.tensor(), Accumulate::overwrite);
        matmul(stream, a.tensor(), ta, b.tensor(), tb, sum.tensor(), Accumulate::add);
        EXPECT_CLOSE(c, product, 1e-6) << m << ' ' << k << ' ' << n;
        EXPECT_CLOSE(sum, total, 1e-6) << m << ' ' << k << ' ' << n;
        EXPECT_TRUE(oracle::same_bits(c.values(), again.values()));
      }
    }
  }
}

TEST_F(Matmul, BlocksOfColumnsLeaveTheirNeighboursAlone) {
  constexpr std::int64_t kRows = 21, kInner = 13, kOut = 9;
  Random a("a", {3, 7, kInner + 6}), b("b", {kOut, kInner + 2});
  Guarded<float> c({kRows, kOut + 5}, 7.0f);
  const Matrix a_block = Matrix(a.tensor()).columns_of(1, kInner + 4).columns_of(3, kInner);
  const Matrix b_block = Matrix(b.tensor()).columns_of(2, kInner);
  const Matrix c_block = Matrix(c.tensor()).columns_of(4, kOut);
  matmul(stream, a_block, kNo, b_block, kYes, c_block, Accumulate::overwrite);

  std::vector<double> expected(kRows * (kOut + 5), 7.0);
  for (std::int64_t i = 0; i < kRows; ++i) {
    for (std::int64_t j = 0; j < kOut; ++j) {
      double sum = 0;
      for (std::int64_t l = 0; l < kInner; ++l) {
        sum += static_cast<double>(a[i * (kInner + 6) + 4 + l]) * static_cast<double>(b[j * (kInner + 2) + 2 + l]);
      }
      expected[static_cast<std::size_t>(i * (kOut + 5) + 4 + j)] = sum;
    }
  }
  EXPECT_CLOSE(c, expected, 1e-6);
  for (std::int64_t i = 0; i < kRows; ++i) {
    for (const std::int64_t j : {0, 1, 2, 3, 13}) EXPECT_EQ(c[i * (kOut + 5) + j], 7.0f);
  }
}

TEST_F(Matmul, AnEmptyInnerExtentWritesZerosOrAddsNothing) {
  Random a("a", {4, 3}), b("b", {3, 5});
  Overwritten c({4, 5});
  const Matrix no_columns = Matrix(a.tensor()).columns_of(1, 0);
  const Tensor no_rows = b.tensor().slice(0, 0);
  matmul(stream, no_columns, kNo, no_rows, kNo, c.tensor(), Accumulate::overwrite);
  for (const float value : c.values()) EXPECT_EQ(value, 0.0f);
  Guarded<float> kept({4, 5}, 3.0f);
  matmul(stream, no_columns, kNo, no_rows, kNo, kept.tensor(), Accumulate::add);
  for (const float value : kept.values()) EXPECT_EQ(value, 3.0f);
  const Matrix made_empty = Tensor::of(c.values().data(), {4, 0});
  EXPECT_EQ(made_empty.rows, 4);
}

TEST_F(Matmul, EmptyOuterExtentsAreFine) {
  Random a("a", {4, 3}), b("b", {3, 5});
  Guarded<float> c({4, 5}, 3.0f);
  matmul(stream, a.tensor().slice(0, 0), kNo, b.tensor(), kNo, c.tensor().slice(0, 0), Accumulate::overwrite);
  matmul(stream, a.tensor(), kNo, Matrix(b.tensor()).columns_of(0, 0), kNo, Matrix(c.tensor()).columns_of(0, 0),
         Accumulate::overwrite);
  for (const float value : c.values()) EXPECT_EQ(value, 3.0f);
}

TEST_F(Matmul, NanInAnOperandReachesTheResult) {
  Guarded<float> a({20, 20}, 0.0f), b({20, 20}, 1.0f);
  Overwritten c({20, 20});
  a[3 * 20 + 5] = std::numeric_limits<float>::quiet_NaN();
  matmul(stream, a.tensor(), kNo, b.tensor(), kNo, c.tensor(), Accumulate::overwrite);
  for (std::int64_t i = 0; i < 400; ++i) EXPECT_EQ(std::isnan(c[i]), i / 20 == 3) << i;
}

TEST_F(Matmul, RefusesShapesThatDoNotAgree) {
  Random a("a", {3, 4}), b("b", {5, 6}), c("c", {3, 6});
  const auto multiply = [&](const Matrix& x, Transpose tx, const Matrix& y, Transpose ty, const Matrix& z) {
    return error_of([&] { matmul(stream, x, tx, y, ty, z, Accumulate::overwrite); });
  };
  EXPECT_EQ(multiply(a.tensor(), kNo, b.tensor(), kNo, c.tensor()),
            "matmul: the shapes of a [3, 4] times b [5, 6] into c [3, 6] do not agree");
  EXPECT_EQ(multiply(a.tensor(), kYes, b.tensor(), kNo, c.tensor()),
            "matmul: the shapes of a [3, 4] transposed times b [5, 6] into c [3, 6] do not agree");
  EXPECT_EQ(multiply(a.tensor(), kNo, b.tensor().slice(0, 4), kNo, a.tensor()),
            "matmul: the shapes of a [3, 4] times b [4, 6] into c [3, 4] do not agree");
  EXPECT_EQ(error_of([&] { (void)Matrix(a.tensor()).columns_of(2, 3); }), "columns [2, 5) of a matrix of 4 columns");
  EXPECT_EQ(error_of([] { (void)Matrix(Tensor()); }), "a matrix made of an absent tensor");

  Matrix beyond(a.tensor());
  beyond.offset = 1;
  EXPECT_EQ(multiply(beyond, kNo, b.tensor().slice(0, 4), kNo, c.tensor()),
            "matmul: a [3, 4] at offset 1 with row stride 4 reaches outside its tensor [3, 4]");
}

TEST_F(Matmul, RefusesTypesAndDevicesItDoesNotComputeWith) {
  Random b("b", {4, 6}), c("c", {3, 6});
  std::vector<BFloat16> halves(12);
  const auto multiply = [&](Stream& on, const Tensor& a) {
    return error_of([&] { matmul(on, a, kNo, b.tensor(), kNo, c.tensor(), Accumulate::overwrite); });
  };
  EXPECT_EQ(multiply(stream, Tensor::of(halves.data(), {3, 4})), "matmul: a is bfloat16 [3, 4], expected float32 [3, 4]");
  EXPECT_EQ(multiply(stream, Tensor(nullptr, {3, 4}, DType::f32, Device::plan())),
            "matmul: a lies on planned cpu, the stream works on cpu");
}

TEST_F(Matmul, APlanChecksAndComputesNothing) {
  Stream plan(Device::plan());
  const auto planned = [](Shape shape) { return Tensor(nullptr, shape, DType::f32, Device::plan()); };
  EXPECT_NO_THROW(matmul(plan, planned({8, 4}), kNo, planned({4, 2}), kNo, planned({8, 2}), Accumulate::overwrite));
  EXPECT_THROW(matmul(plan, planned({8, 4}), kNo, planned({3, 2}), kNo, planned({8, 2}), Accumulate::overwrite), Error);
  constexpr std::int64_t kMany = std::int64_t{1} << 31;
  EXPECT_EQ(error_of([&] {
              matmul(plan, planned({kMany, 4}), kNo, planned({4, 2}), kNo, planned({kMany, 2}), Accumulate::overwrite);
            }),
            "matmul: a has 2147483648 rows of stride 4; the BLAS counts to 2^31 - 1, so split the product");
}

TEST_F(Matmul, BFloat16IsForGpusAlsoOnPaper) {
  for (const DeviceKind kind : {DeviceKind::cpu, DeviceKind::cuda}) {
    Stream plan(Device::plan(kind));
    const auto planned = [kind](Shape shape) { return Tensor(nullptr, shape, DType::bf16, Device::plan(kind)); };
    const auto multiply = [&] {
      matmul(plan, planned({8, 4}), kNo, planned({4, 2}), kNo, planned({8, 2}), Accumulate::overwrite);
    };
    EXPECT_EQ(error_of(multiply),
              kind == DeviceKind::cuda ? "nothing was thrown" : "matmul: a is bfloat16 [8, 4], expected float32 [8, 4]");
  }
}

TEST_F(Matmul, ItsTimeGoesToTheTrace) {
  Trace trace;
  Stream traced(Device::cpu(), &trace);
  Random a("a", {3, 4}), b("b", {4, 6}), c("c", {3, 6});
  for (int i = 0; i < 2; ++i) matmul(traced, a.tensor(), kNo, b.tensor(), kNo, c.tensor(), Accumulate::overwrite);
  ASSERT_EQ(trace.entries().size(), 1u);
  EXPECT_EQ(trace.entries()[0].name, "matmul");
  EXPECT_EQ(trace.entries()[0].calls, 2);
}

}  // namespace
}  // namespace dm
