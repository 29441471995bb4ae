// Ordered work on one device; the first argument of every op and collective.
#pragma once

#include "runtime/cuda/cuda.h"
#include "runtime/device.h"
#include "runtime/trace.h"

namespace dm {

/// Work given to one stream runs in order. On the CPU it is done when the call returns; on a planned device ops check
/// their shapes and do nothing; on a GPU it is a CUDA stream with its cuBLASLt handle and workspace. A stream carries what
/// an op may need besides its tensors: the device and the trace that its ranges go to (may be null). It outlives the work
/// given to it. Construction throws Error when the device cannot be used.
class Stream {
 public:
  /// Blocks of a stream of high priority get the next free place of a GPU, before those of other streams that wait.
  enum class Priority : bool { normal, high };

  explicit Stream(Device device, Trace* trace = nullptr, Priority priority = Priority::normal)
      : device_(device),
        trace_(trace),
        native_(runs_on_gpu() ? cuda::create_stream(device.index, priority == Priority::high) : nullptr) {}
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  Device device() const { return device_; }
  bool planning() const { return device_.planned; }
  Trace* trace() const { return trace_; }
  /// Returns when all work given so far is done.
  void synchronize() {
    if (native_) cuda::synchronize(*native_);
  }
  /// CUDA's handles (runtime/cuda/native_stream.h); null unless this stream runs on a GPU.
  cuda::NativeStream* native() const { return native_.get(); }

 private:
  bool runs_on_gpu() const { return device_.kind == DeviceKind::cuda && !device_.planned; }

  Device device_;
  Trace* trace_;
  cuda::NativeStreamPointer native_;
};

/// A point in a stream's work that other streams, or the host, wait for. Nothing on the CPU, where work is done at once.
class Event {
 public:
  /// The point after all work given to `stream` so far.
  void record(Stream& stream) {
    if (!stream.native()) return;
    if (!native_) native_ = cuda::create_event();
    cuda::record(*native_, *stream.native());
  }
  /// Work given to `stream` from now on begins after the recorded point.
  void hold(Stream& stream) const {
    if (native_ && stream.native()) cuda::wait(*stream.native(), *native_);
  }
  /// Returns when the recorded point is reached.
  void synchronize() const {
    if (native_) cuda::synchronize(*native_);
  }
  /// Milliseconds between two recorded points of GPU streams.
  static double elapsed_ms(const Event& begin, const Event& end) { return cuda::elapsed_ms(*begin.native_, *end.native_); }

 private:
  cuda::NativeEventPointer native_;
};

}  // namespace dm
