// What a GPU spends: its energy counter and clock, by the driver's management library (NVML).
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "runtime/device.h"

namespace dm {

/// Reads counters of one GPU. The library comes with the driver and is looked up when a meter is made: without it, on a
/// driver that does not count energy and on CPUs a meter has nothing to tell, and is no error.
class PowerMeter {
 public:
  explicit PowerMeter(Device device);

  /// Joules since the driver was loaded. The counter moves some ten times a second: differences want a second or more.
  std::optional<double> joules() const;
  /// The multiprocessors' clock now, in MHz: below the GPU's highest when power or heat limits it.
  std::optional<double> clock_mhz() const;

 private:
  struct Nvml;
  std::shared_ptr<const Nvml> nvml_;  ///< Null when there is nothing to read.
};

}  // namespace dm
