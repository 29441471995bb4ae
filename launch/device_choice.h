// Which device each rank of a job computes on.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "runtime/device.h"

namespace dm {

/// What `run.device` means on this machine: "cpu", "cuda", or for "auto" cuda where this program has the backend and sees a
/// GPU.
DeviceKind device_kind(const std::string& option);

/// The GPUs that one rank sees: their identities (cuda::device_identity) in the order of its ordinals.
struct VisibleGpus {
  std::string host;
  std::vector<std::string> identities;
};

/// For each rank the ordinal, among those it sees, of the GPU it computes on: in rank order, the first that no lower rank
/// has taken. So it does not matter whether the ranks of a node all see all of its GPUs, or each was given its own (by
/// CUDA_VISIBLE_DEVICES, as Slurm's --gpus-per-task does), or each its socket's. Throws AgreedError (usage) that names the
/// first rank for which none is left.
std::vector<int> assign_gpus(std::span<const VisibleGpus> ranks);

/// The CPU, or the GPU that `assign_gpus` gives this rank. Collective over `world`. "auto" takes GPUs only where every rank
/// sees one. Throws Error (usage) on all ranks when a rank finds no GPU of its own or one of another architecture.
Device choose_device(const std::string& option, Communicator& world);

/// A line for users whose process may run on one core only of a machine that has more, or nothing. A rank of a GPU has other
/// threads beside the one that drives it: initial values, the text stream and NCCL's. `mpirun` binds one or two ranks to a
/// core each.
std::string advice_on_cores(DeviceKind device, int usable, int present);

/// Switches NCCL's NVLink multicast (NVLS) on or off, unless the environment says NCCL_NVLS_ENABLE. Before the first group.
void allow_nvlink_multicast(bool allowed);

}  // namespace dm
