// Where memory lies and where work runs.
#pragma once

#include <cstdint>
#include <string>

namespace dm {

/// `plan` is the device of a planning run: tensors there have a shape and no memory, and every op checks its
/// shapes and returns. Running the unchanged model on it gives the exact size of the arena before a byte is taken.
enum class DeviceKind : std::uint8_t { cpu, cuda, plan };

struct Device {
  DeviceKind kind = DeviceKind::cpu;
  int index = 0;  ///< The CUDA device ordinal; 0 otherwise. Never a rank.

  static constexpr Device cpu() { return {DeviceKind::cpu, 0}; }
  static constexpr Device cuda(int index) { return {DeviceKind::cuda, index}; }
  static constexpr Device plan() { return {DeviceKind::plan, 0}; }

  friend constexpr bool operator==(const Device&, const Device&) = default;
};

inline std::string name_of(const Device& device) {
  switch (device.kind) {
    case DeviceKind::cpu:
      return "cpu";
    case DeviceKind::cuda:
      return "cuda:" + std::to_string(device.index);
    case DeviceKind::plan:
      return "plan";
  }
  return "?";
}

}  // namespace dm
