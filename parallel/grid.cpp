// Splitting the world into rows and columns.
#include "parallel/grid.h"

#include <fmt/format.h>

namespace dm {

Grid Grid::make(std::unique_ptr<Communicator> world, int tensor_size) {
  if (tensor_size < 1 || world->size() % tensor_size != 0) {
    fail(fmt::format("{} ranks do not divide into tensor groups of {}; change mpirun -n or --parallel.tensor", world->size(),
                     tensor_size),
         ExitCode::usage);
  }
  Grid grid;
  const int rank = world->rank();
  grid.tensor = world->split(rank / tensor_size, rank, "tensor");
  grid.data = world->split(rank % tensor_size, rank, "data");
  grid.world = std::move(world);
  return grid;
}

Grid Grid::plan(int data_size, int tensor_size) {
  require(data_size >= 1 && tensor_size >= 1, "a grid has at least one rank on each axis");
  Grid grid;
  grid.world = make_self_communicator(0, data_size * tensor_size, "world");
  grid.data = make_self_communicator(0, data_size, "data");
  grid.tensor = make_self_communicator(0, tensor_size, "tensor");
  return grid;
}

std::string Grid::describe() const {
  return fmt::format("data {} × tensor {}", data->size(), tensor->size());
}

}  // namespace dm
