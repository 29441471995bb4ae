// What a rank of a run will hold in memory, found by running the model on nothing.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "launch/train_options.h"
#include "model/language_model.h"
#include "parallel/grid.h"
#include "runtime/buffer.h"

namespace dm {

struct MemoryPlan {
  std::int64_t activation_bytes = 0;  ///< Size of the arena that training (and validation) needs.
  /// Everything by name, largest groups first inside activations: parameters, gradients, moments, activations by tag.
  std::vector<std::pair<std::string, std::int64_t>> entries;
  std::int64_t total = 0;
};

/// How many sequences a rank of the data group computes at once: train.micro_batch, or its whole share where that is
/// smaller. Throws Error (usage) when batch, ranks and micro-batch do not divide.
std::int64_t micro_batch_of(const TrainOptions::Train& train, int data_size);

/// Plans rank 0 of a data × tensor grid for `options` (model resolved). Takes no memory worth mentioning and needs no MPI.
MemoryPlan plan_memory(const TrainOptions& options, int data_size, int tensor_size, DeviceKind device);

/// What a group of `ranks` GPUs shares its memory by (Communicator::share); nothing for one rank and on CPUs.
Buffer sharing_workspace(int ranks, Device device, MemoryReport& report);

/// The options of the model's calls.
LanguageModel::Options model_options(const TrainOptions::Train& train);

/// Lines "  name   1.2 MiB" and a total, for the banner and `densemamba plan`.
std::vector<std::string> memory_table(const MemoryPlan& plan);

/// One line about the model: kind, sizes, parameters, operations a token.
std::string describe_model(const ModelConfig& config);

}  // namespace dm
