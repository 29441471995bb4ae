// Which device each rank of a job computes on.
#pragma once

#include <string>

#include "parallel/communicator.h"
#include "runtime/device.h"

namespace dm {

/// What `run.device` means on this machine: "cpu", "cuda", or for "auto" cuda where this program has the backend and sees a
/// GPU.
DeviceKind device_kind(const std::string& option);

/// The CPU, or the GPU whose ordinal is the rank's place among the ranks on its node (never its place in the world).
/// Collective over `world`. "auto" takes GPUs only where every rank has one to see. Throws Error (usage) on all ranks when a
/// rank finds no GPU of its own or one of another architecture.
Device choose_device(const std::string& option, Communicator& world);

}  // namespace dm
