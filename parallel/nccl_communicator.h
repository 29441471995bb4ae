// Collectives between GPUs over NCCL.
#pragma once

#include <memory>
#include <string>

#include "parallel/communicator.h"
#include "runtime/device.h"

namespace dm {

/// Seconds that all ranks have to come up before construction fails.
inline constexpr double kNcclDeadlineSeconds = 120;

/// The ranks of `host`, each with a GPU of its own, as a group whose collectives run on CUDA streams. Collective over
/// `host`, which hands round NCCL's unique id and is not needed afterwards. Throws a retryable Error when not every rank is
/// there within the deadline. Reductions follow NCCL's order, which a ring or tree of the same ranks repeats: same bits
/// every run on one grid, and the same on all ranks. i64 tensors are reduced as such; u8 only moves. A build without CUDA
/// throws Error.
std::unique_ptr<Communicator> make_nccl_communicator(Communicator& host, Device device, std::string name,
                                                     CollectiveObserver* observer,
                                                     double deadline_seconds = kNcclDeadlineSeconds);

}  // namespace dm
