// Splitting the world into rows and columns.
#include "parallel/grid.h"

#include <utility>

#include <fmt/format.h>

#include "parallel/nccl_communicator.h"

namespace dm {

namespace {

/// The device's twin of a host group.
std::unique_ptr<Communicator> on_gpu(Communicator& host, Device device, CollectiveObserver* observer) {
  if (host.size() == 1) return make_self_communicator(0, 1, host.name());
  return make_nccl_communicator(host, device, host.name(), observer);
}

}  // namespace

Grid Grid::make(std::unique_ptr<Communicator> world, int tensor_size, Device device, CollectiveObserver* observer) {
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
  if (device.kind == DeviceKind::cuda) {
    grid.host_tensor = std::exchange(grid.tensor, on_gpu(*grid.tensor, device, observer));
    grid.host_data = std::exchange(grid.data, on_gpu(*grid.data, device, observer));
  }
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
