// The parts of a micro-batch and the ranks' rows of them are its rows, each once and in order.
#include "model/parts.h"

#include <numeric>
#include <vector>

#include <gtest/gtest.h>

namespace dm {
namespace {

TEST(Parts, RowsOfAllRanksAreTheRows) {
  constexpr std::int64_t kTokens = 8;
  constexpr int kRanks = 4;
  for (const std::int64_t batch : {1, 2, 3, 6}) {
    std::vector<float> values(static_cast<std::size_t>(batch * kTokens));
    std::iota(values.begin(), values.end(), 0.0f);
    const Tensor x = Tensor::of(values.data(), {batch, kTokens}), wide = x.reshaped({batch, kTokens / 2, 2});
    const Parts parts(batch, kTokens, 0, kRanks, /*halves=*/true);
    EXPECT_TRUE(parts.cut());
    EXPECT_EQ(parts.count(), batch % 2 == 0 ? 2 : 1);
    float next = 0;
    for (int i = 0; i < parts.count(); ++i) {
      EXPECT_EQ(parts.of(x, i).size(0), batch / parts.count());
      EXPECT_EQ(*parts.of(x, i).as<float>(), next);
      for (int rank = 0; rank < kRanks; ++rank) {
        const Parts of_rank(batch, kTokens, rank, kRanks, /*halves=*/true);
        const Tensor own = of_rank.own(x, i);
        EXPECT_EQ(own.numel() * kRanks, parts.of(x, i).numel());
        EXPECT_EQ(of_rank.own(wide, i).data(), own.data());
        EXPECT_EQ(of_rank.own(wide, i).shape(), (Shape{own.numel() / 2, 2}));
        for (std::int64_t row = 0; row < own.numel(); ++row) EXPECT_EQ(own.as<float>()[row], next++);
      }
    }
    EXPECT_EQ(next, static_cast<float>(values.size()));
  }
}

TEST(Parts, OneUnlessHalvesAreWantedAndDivide) {
  EXPECT_EQ(Parts(2, 8, 0, 2, false).count(), 1);
  EXPECT_TRUE(Parts(2, 8, 0, 2, false).cut());
  EXPECT_EQ(Parts(2, 7, 0, 2, true).count(), 1) << "seven rows do not divide";
  EXPECT_TRUE(Parts(2, 7, 0, 2, true).cut()) << "fourteen do";
}

TEST(Parts, WholeWhereTheRanksDoNotDivideTheRows) {
  std::vector<float> values(7 * 3);
  const Tensor x = Tensor::of(values.data(), {1, 7, 3});
  for (const Parts& parts : {Parts(1, 7, 1, 2, true), Parts::whole(1, 7)}) {
    EXPECT_FALSE(parts.cut());
    EXPECT_EQ(parts.count(), 1);
    EXPECT_EQ(parts.own(x, 0).shape(), (Shape{7, 3}));
    EXPECT_EQ(parts.own(x, 0).data(), x.data());
    EXPECT_FALSE(parts.of(Tensor(), 0));
    EXPECT_FALSE(parts.inbox(0));
  }
}

TEST(Parts, InboxesAreNextToOneAnother) {
  std::vector<float> values(3 * 8 * 2);
  const Tensor memory = Tensor::of(values.data(), {3, 8, 2});
  Parts parts(4, 8, 1, 4, true);
  parts.receive(memory);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(parts.inbox(i).shape(), (Shape{3, 4, 2}));
    EXPECT_EQ(parts.inbox(i).as<float>(), values.data() + i * 3 * 4 * 2);
  }
}

}  // namespace
}  // namespace dm
