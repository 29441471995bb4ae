// Where memory lies and where work runs.
#pragma once

#include <cstdint>
#include <string>

namespace dm {

enum class DeviceKind : std::uint8_t { cpu, cuda };

/// A device may be planned: tensors there have a shape and no memory, and every op checks its shapes and returns. Running
/// the unchanged model on it gives the exact size of the arena before a byte is taken, also for a GPU that this machine does
/// not have.
struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;         ///< The CUDA device ordinal; 0 otherwise. Never a rank.
  bool planned = false;  ///< Only on paper.

  static constexpr Device cpu() { return {}; }
  static constexpr Device cuda(int index) { return {DeviceKind::cuda, index, false}; }
  /// The planned twin of a device.
  static constexpr Device plan(DeviceKind kind = DeviceKind::cpu) { return {kind, 0, true}; }

  friend constexpr bool operator==(const Device&, const Device&) = default;
};

/// "cpu", "cuda:0", "planned cpu"
inline std::string name_of(const Device& device) {
  const std::string name = device.kind == DeviceKind::cpu ? "cpu" : "cuda:" + std::to_string(device.index);
  return device.planned ? "planned " + name : name;
}

}  // namespace dm
