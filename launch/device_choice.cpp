// Every rank tells what it sees; each then knows who computes where.
#include "launch/device_choice.h"

#include <algorithm>
#include <cstdlib>
#include <set>
#include <sstream>

#include <fmt/format.h>

#include "parallel/agreement.h"
#include "runtime/cuda/cuda.h"
#include "runtime/host.h"

namespace dm {
namespace {

/// Host and identities, one a line; none of them has a line break.
std::string to_text(const VisibleGpus& seen) {
  return fmt::format("{}\n{}", seen.host, fmt::join(seen.identities, "\n"));
}

VisibleGpus from_text(const std::string& text) {
  std::istringstream lines(text);
  VisibleGpus seen;
  std::getline(lines, seen.host);
  for (std::string line; std::getline(lines, line);) seen.identities.push_back(line);
  return seen;
}

std::vector<VisibleGpus> gather_visible_gpus(Communicator& world) {
  VisibleGpus mine{.host = host_name(), .identities = {}};
  for (int i = 0; i < cuda::device_count(); ++i) mine.identities.push_back(cuda::device_identity(i));
  std::vector<VisibleGpus> ranks;
  for (const std::string& text : gather_texts(world, to_text(mine))) ranks.push_back(from_text(text));
  return ranks;
}

}  // namespace

DeviceKind device_kind(const std::string& option) {
  if (option == "cpu") return DeviceKind::cpu;
  if (option == "cuda") return DeviceKind::cuda;
  return cuda::device_count() > 0 ? DeviceKind::cuda : DeviceKind::cpu;
}

std::vector<int> assign_gpus(std::span<const VisibleGpus> ranks) {
  std::set<std::string> taken;
  std::vector<int> ordinals;
  for (const VisibleGpus& rank : ranks) {
    const auto free = std::find_if(rank.identities.begin(), rank.identities.end(),
                                   [&](const std::string& identity) { return !taken.contains(identity); });
    if (free == rank.identities.end()) {
      const std::string seen = rank.identities.empty()
                                   ? "it sees none"
                                   : fmt::format("lower ranks have taken all {} that it sees", rank.identities.size());
      throw AgreedError(fmt::format("device: rank {} on {} has no GPU of its own: {}; start at most one rank a GPU, or use "
                                    "--run.device cpu",
                                    ordinals.size(), rank.host, seen),
                        ExitCode::usage);
    }
    taken.insert(*free);
    ordinals.push_back(static_cast<int>(free - rank.identities.begin()));
  }
  return ordinals;
}

Device choose_device(const std::string& option, Communicator& world) {
  Stream host(Device::cpu());
  std::int32_t without_gpu = device_kind(option) == DeviceKind::cpu ? 1 : 0;
  world.all_reduce(host, Tensor::of(&without_gpu, {1}), ReduceOp::max);
  if (without_gpu != 0) return Device::cpu();
  const std::vector<int> ordinals = assign_gpus(gather_visible_gpus(world));
  const Device device = Device::cuda(ordinals[static_cast<std::size_t>(world.rank())]);
  run_on_all(world, "device", [&] { cuda::require_device(device.index); });
  return device;
}

std::string advice_on_cores(DeviceKind device, int usable, int present) {
  if (device == DeviceKind::cpu || usable > 1 || present == 1) return "";
  return fmt::format(
      "this rank may use 1 of the machine's {} cores, which the threads that feed its GPU have to share: start "
      "with mpirun --bind-to none",
      present);
}

void allow_nvlink_multicast(bool allowed) {
  ::setenv("NCCL_NVLS_ENABLE", allowed ? "1" : "0", /*overwrite=*/0);
}

}  // namespace dm
