// The data × tensor grid of ranks and its communicators.
#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"
#include "runtime/device.h"

namespace dm {

/// Rank w of the world is data rank w / tensor_size and tensor rank w % tensor_size: tensor is the fastest axis, so that a
/// tensor group stays inside a node under mpirun's default placement.
struct Grid {
  std::unique_ptr<Communicator> world;   ///< All ranks, for host tensors.
  std::unique_ptr<Communicator> data;    ///< Ranks with the same tensor rank; gradients are reduced over it, on the device.
  std::unique_ptr<Communicator> tensor;  ///< Ranks that share one copy of the model, on the device.
  /// The same two groups for host tensors; absent where `data` and `tensor` are such.
  std::unique_ptr<Communicator> host_data, host_tensor;

  /// Splits `world` into tensor groups of `tensor_size`; on a GPU, groups of several ranks talk over NCCL. Collective.
  /// Throws Error (usage) when the world's size is not a multiple.
  static Grid make(std::unique_ptr<Communicator> world, int tensor_size, Device device = Device::cpu(),
                   CollectiveObserver* observer = nullptr);
  /// Rank 0 of a grid that exists only on paper, for planning streams.
  static Grid plan(int data_size, int tensor_size);

  Communicator& data_on_host() const { return host_data ? *host_data : *data; }
  Communicator& tensor_on_host() const { return host_tensor ? *host_tensor : *tensor; }

  /// "data 2 × tensor 2"
  std::string describe() const;
};

}  // namespace dm
