// Shards against an element-by-element cut of the global tensor.
#include "parallel/shard.h"

#include <tuple>

#include <gtest/gtest.h>

namespace dm {
namespace {

using Axis = Shard::Axis;

/// The global flat index of every local element of `rank`, by the definition of the cut.
std::vector<std::int64_t> owned(const Shape& global, Shard shard, int rank, int ranks) {
  const Shape matrix = as_matrix(global);
  const std::int64_t part_rows = matrix[0] / shard.parts;
  std::vector<std::int64_t> elements;
  for (std::int64_t row = 0; row < matrix[0]; ++row) {
    for (std::int64_t column = 0; column < matrix[1]; ++column) {
      const bool mine = shard.axis == Axis::none ||
                        (shard.axis == Axis::rows && row % part_rows / (part_rows / ranks) == rank) ||
                        (shard.axis == Axis::columns && column / (matrix[1] / ranks) == rank);
      if (mine) elements.push_back(row * matrix[1] + column);
    }
  }
  return elements;
}

std::vector<std::int64_t> covered(const Shape& global, const std::vector<Rectangle>& rectangles) {
  std::vector<std::int64_t> elements;
  for (const Rectangle& r : rectangles) {
    for (std::int64_t row = r.row; row < r.row + r.rows; ++row) {
      for (std::int64_t column = r.column; column < r.column + r.columns; ++column) {
        elements.push_back(row * as_matrix(global)[1] + column);
      }
    }
  }
  return elements;
}

TEST(Shard, EveryRunOfLocalElementsLiesWhereTheCutSays) {
  const std::vector<std::tuple<Shape, Shard>> cuts = {
      {{6}, {Axis::none}},        {{12}, {Axis::rows}},          {{4, 3}, {Axis::none}},
      {{12, 5}, {Axis::rows}},    {{24, 3}, {Axis::rows, 2}},    {{36, 2}, {Axis::rows, 3}},
      {{3, 12}, {Axis::columns}}, {{12, 1, 4}, {Axis::rows, 1}}, {{2, 12, 2}, {Axis::columns}},
  };
  for (const auto& [global, shard] : cuts) {
    for (int ranks : {1, 2, 3, 4, 6}) {
      if (global[shard.axis == Axis::columns ? 1 : 0] % (ranks * shard.parts) != 0 && shard.axis != Axis::none) continue;
      for (int rank = 0; rank < ranks; ++rank) {
        const std::vector<std::int64_t> all = owned(global, shard, rank, ranks);
        const auto count = static_cast<std::int64_t>(all.size());
        ASSERT_EQ(local_shape("p", global, shard, ranks).numel(), count) << to_string(global);
        for (std::int64_t begin = 0; begin <= count; ++begin) {
          for (std::int64_t length = 0; begin + length <= count; ++length) {
            const auto rectangles = global_rectangles(global, shard, rank, ranks, begin, length);
            ASSERT_EQ(covered(global, rectangles),
                      std::vector<std::int64_t>(all.begin() + begin, all.begin() + begin + length))
                << to_string(global) << " rank " << rank << " of " << ranks << ", " << length << " from " << begin;
            ASSERT_LE(rectangles.size(), 3u * static_cast<std::size_t>(shard.parts));
          }
        }
      }
    }
  }
}

TEST(Shard, RanksShareEveryElementOnce) {
  const Shape global{8, 6};
  for (const Shard shard : {Shard{Axis::rows}, Shard{Axis::rows, 2}, Shard{Axis::columns}}) {
    std::vector<int> owners(48, 0);
    for (int rank = 0; rank < 2; ++rank) {
      for (std::int64_t at : covered(global, global_rectangles(global, shard, rank, 2, 0, 24))) ++owners[at];
    }
    EXPECT_EQ(owners, std::vector<int>(48, 1));
  }
}

TEST(Shard, LocalShapes) {
  EXPECT_EQ(local_shape("p", {8, 6}, {Axis::rows, 2}, 4), (Shape{2, 6}));
  EXPECT_EQ(local_shape("p", {8, 6}, {Axis::columns}, 3), (Shape{8, 2}));
  EXPECT_EQ(local_shape("p", {8, 6}, {}, 5), (Shape{8, 6}));
  EXPECT_EQ(as_matrix({8, 1, 4}), (Shape{8, 4}));
  EXPECT_EQ(as_matrix({8}), (Shape{8, 1}));
}

TEST(Shard, ACutThatDoesNotDivideIsTheUsersError) {
  try {
    local_shape("in_proj", {10, 6}, {Axis::rows, 2}, 4);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_NE(std::string(error.what()).find("in_proj of shape [10, 6]"), std::string::npos) << error.what();
  }
}

TEST(Shard, ElementsOutsideTheShardAreRefused) {
  EXPECT_THROW(global_rectangles({8, 6}, {Axis::rows}, 0, 2, 0, 25), Error);
  EXPECT_THROW(global_rectangles({8, 6}, {Axis::rows}, 0, 2, -1, 1), Error);
  EXPECT_TRUE(global_rectangles({0, 6}, {Axis::rows}, 0, 2, 0, 0).empty());
}

}  // namespace
}  // namespace dm
