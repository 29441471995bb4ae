// Ordered work on one device; the first argument of every op and collective.
#pragma once

#include "runtime/device.h"
#include "runtime/trace.h"

namespace dm {

/// Work given to one stream runs in order. On the CPU it is done when the call returns; on the plan device ops check
/// their shapes and do nothing. A stream carries what an op may need besides its tensors: the device and the
/// trace that its ranges go to (may be null). It outlives the work given to it.
class Stream {
 public:
  explicit Stream(Device device, Trace* trace = nullptr) : device_(device), trace_(trace) {}
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device device() const { return device_; }
  bool planning() const { return device_.kind == DeviceKind::plan; }
  Trace* trace() const { return trace_; }
  /// Returns when all work given so far is done.
  void synchronize() {}

 private:
  Device device_;
  Trace* trace_;
};

}  // namespace dm
