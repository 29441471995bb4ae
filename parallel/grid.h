// The data × tensor grid of ranks and its communicators.
#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"

namespace dm {

/// Rank w of the world is data rank w / tensor_size and tensor rank w % tensor_size: tensor is the fastest axis, so that a
/// tensor group stays inside a node under mpirun's default placement.
struct Grid {
  std::unique_ptr<Communicator> world;
  std::unique_ptr<Communicator> data;    ///< Ranks with the same tensor rank; gradients are reduced over it.
  std::unique_ptr<Communicator> tensor;  ///< Ranks that share one copy of the model.

  /// Splits `world` into tensor groups of `tensor_size`. Collective. Throws Error (usage) when the world's size is not a
  /// multiple.
  static Grid make(std::unique_ptr<Communicator> world, int tensor_size);
  /// Rank 0 of a grid that exists only on paper, for planning streams.
  static Grid plan(int data_size, int tensor_size);

  /// "data 2 × tensor 2"
  std::string describe() const;
};

}  // namespace dm
