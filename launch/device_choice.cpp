// Ranks that share a host name share its GPUs in rank order.
#include "launch/device_choice.h"

#include <algorithm>
#include <vector>

#include "parallel/agreement.h"
#include "runtime/cuda/cuda.h"
#include "runtime/host.h"

namespace dm {

DeviceKind device_kind(const std::string& option) {
  if (option == "cpu") return DeviceKind::cpu;
  if (option == "cuda") return DeviceKind::cuda;
  return cuda::device_count() > 0 ? DeviceKind::cuda : DeviceKind::cpu;
}

Device choose_device(const std::string& option, Communicator& world) {
  Stream host(Device::cpu());
  std::int32_t without_gpu = device_kind(option) == DeviceKind::cpu ? 1 : 0;
  world.all_reduce(host, Tensor::of(&without_gpu, {1}), ReduceOp::max);
  if (without_gpu != 0) return Device::cpu();
  const std::vector<std::string> hosts = gather_texts(world, host_name());
  const auto on_this_node = std::count(hosts.begin(), hosts.begin() + world.rank(), host_name());
  const Device device = Device::cuda(static_cast<int>(on_this_node));
  run_on_all(world, "device", [&] { cuda::require_device(device.index); });
  return device;
}

}  // namespace dm
