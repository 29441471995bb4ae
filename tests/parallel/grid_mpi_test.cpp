// Every way to cut the job's ranks into a grid.
#include "parallel/grid.h"

#include <gtest/gtest.h>

namespace dm {
namespace {

TEST(Grid, TensorIsTheFastestAxis) {
  Stream stream(Device::cpu());
  const int ranks = make_mpi_communicator()->size();
  for (int tensor_size = 1; tensor_size <= ranks; ++tensor_size) {
    if (ranks % tensor_size != 0) {
      EXPECT_THROW(Grid::make(make_mpi_communicator(), tensor_size), Error);
      continue;
    }
    const Grid grid = Grid::make(make_mpi_communicator(), tensor_size);
    const int rank = grid.world->rank();
    EXPECT_EQ(grid.tensor->size(), tensor_size);
    EXPECT_EQ(grid.data->size(), ranks / tensor_size);
    EXPECT_EQ(grid.tensor->rank(), rank % tensor_size);
    EXPECT_EQ(grid.data->rank(), rank / tensor_size);

    // Who is in the groups, by what they send.
    const std::int32_t mine = rank;
    std::vector<std::int32_t> members(static_cast<std::size_t>(ranks));
    const auto gather = [&](Communicator& group) {
      std::int32_t value = mine;
      members.resize(static_cast<std::size_t>(group.size()));
      group.all_gather(stream, Tensor::of(&value, {1}), Tensor::of(members.data(), {group.size()}));
    };
    gather(*grid.tensor);
    for (int t = 0; t < tensor_size; ++t)
      EXPECT_EQ(members[static_cast<std::size_t>(t)], rank / tensor_size * tensor_size + t);
    gather(*grid.data);
    for (int d = 0; d < grid.data->size(); ++d) {
      EXPECT_EQ(members[static_cast<std::size_t>(d)], d * tensor_size + rank % tensor_size);
    }

    // A sum over one axis and then the other is the sum over all.
    std::int64_t sum = rank + 1;
    grid.tensor->all_reduce(stream, Tensor::of(&sum, {1}));
    grid.data->all_reduce(stream, Tensor::of(&sum, {1}));
    EXPECT_EQ(sum, ranks * (ranks + 1) / 2);
  }
}

}  // namespace
}  // namespace dm
