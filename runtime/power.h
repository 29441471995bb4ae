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

/// What a GPU spends from the making of this on; the meter outlives it.
class PowerSpan {
 public:
  struct Use {
    double joules = 0;
    double clock_mhz = 0;  ///< Mean of the samples.
  };

  explicit PowerSpan(const PowerMeter& meter) : meter_(meter), joules_(meter.joules()) {}
  /// Takes the clock; at least once.
  void sample() { clocks_ += meter_.clock_mhz().value_or(0), ++samples_; }
  /// Until now; nothing where the meter has nothing to tell.
  std::optional<Use> use() const {
    const std::optional<double> now = meter_.joules();
    if (!joules_ || !now) return std::nullopt;
    return Use{*now - *joules_, clocks_ / samples_};
  }

 private:
  const PowerMeter& meter_;
  std::optional<double> joules_;
  double clocks_ = 0;
  int samples_ = 0;
};

}  // namespace dm
