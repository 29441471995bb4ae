// Grids of one process and grids on paper.
#include "parallel/grid.h"

#include <gtest/gtest.h>

namespace dm {
namespace {

TEST(Grid, OneProcess) {
  const Grid grid = Grid::make(make_self_communicator(), 1);
  EXPECT_EQ(grid.world->size(), 1);
  EXPECT_EQ(grid.data->name(), "data");
  EXPECT_EQ(grid.tensor->name(), "tensor");
  EXPECT_EQ(grid.describe(), "data 1 × tensor 1");
}

TEST(Grid, OnPaper) {
  const Grid grid = Grid::plan(3, 2);
  EXPECT_EQ(grid.world->size(), 6);
  EXPECT_EQ(grid.data->size(), 3);
  EXPECT_EQ(grid.tensor->size(), 2);
  EXPECT_EQ(grid.describe(), "data 3 × tensor 2");
  EXPECT_THROW(Grid::plan(0, 2), Error);
}

TEST(Grid, ATensorSizeThatDoesNotDivideIsTheUsersError) {
  for (int tensor_size : {0, -1, 2}) {
    try {
      Grid::make(make_self_communicator(), tensor_size);
      FAIL() << tensor_size;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::usage);
    }
  }
}

}  // namespace
}  // namespace dm
