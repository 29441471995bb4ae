// Pieces of rows and the ranks' parts of them are the rows, each once and in order.
#include "model/row_pieces.h"

#include <numeric>
#include <vector>

#include <gtest/gtest.h>

namespace dm {
namespace {

TEST(RowPieces, PartsOfAllRanksAreTheRows) {
  for (const std::int64_t rows : {4, 8, 12, 100}) {
    std::vector<float> values(static_cast<std::size_t>(rows));
    std::iota(values.begin(), values.end(), 0.0f);
    const Tensor x = Tensor::of(values.data(), {rows});
    constexpr int kRanks = 4;
    const RowPieces first(rows, 0, kRanks);
    EXPECT_TRUE(first.cut());
    float next = 0;
    for (int i = 0; i < first.count(); ++i) {
      EXPECT_EQ(*first.piece(x, i).as<float>(), next);
      for (int rank = 0; rank < kRanks; ++rank) {
        const Tensor own = RowPieces(rows, rank, kRanks).own(x, i);
        EXPECT_EQ(own.numel() * kRanks, first.piece(x, i).numel());
        for (std::int64_t row = 0; row < own.numel(); ++row) EXPECT_EQ(own.as<float>()[row], next++);
      }
    }
    EXPECT_EQ(next, static_cast<float>(rows));
  }
}

TEST(RowPieces, WholeWhereTheRanksDoNotDivideThem) {
  std::vector<float> values(7 * 3);
  const Tensor x = Tensor::of(values.data(), {1, 7, 3});
  for (const RowPieces& rows : {RowPieces(7, 1, 2), RowPieces::whole(7)}) {
    EXPECT_FALSE(rows.cut());
    EXPECT_EQ(rows.count(), 1);
    EXPECT_EQ(rows.own(x, 0).shape(), (Shape{7, 3}));
    EXPECT_EQ(rows.own(x, 0).data(), x.data());
  }
}

TEST(RowPieces, OfAMatrixAreThoseOfItsTensor) {
  std::vector<float> values(8 * 6);
  const Tensor x = Tensor::of(values.data(), {2, 4, 6});
  const RowPieces rows(8, 1, 2);
  for (int i = 0; i < rows.count(); ++i) {
    const Matrix right = rows.piece(Matrix(x).columns_of(2, 3), i);
    EXPECT_TRUE(right.fits());
    EXPECT_EQ(right.rows, rows.piece(x, i).size(0));
    EXPECT_EQ(right.as<float>(), rows.piece(x, i).as<float>() + 2);
  }
}

}  // namespace
}  // namespace dm
