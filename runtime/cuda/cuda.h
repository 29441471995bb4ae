// What the rest of runtime/ needs of CUDA, without CUDA's headers; a build without the toolkit has a twin that refuses.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace dm::cuda {

/// True when this program was built with the CUDA backend.
bool is_built();
/// GPUs that this process can use; 0 without a driver. Never throws.
int device_count();
/// Throws Error (usage) with a sentence when `device` does not exist or is not of the architecture this program was built
/// for.
void require_device(int device);
/// The second half of that: a device of this name and compute capability can run this program, or Error (usage).
void require_architecture(const std::string& name, int major, int minor);
/// "GPU-5ccbf03e-…", as nvidia-smi -L prints it: the same GPU for every process of every host, whatever its ordinal there.
std::string device_identity(int device);
/// "NVIDIA H100 80GB HBM3, 79.2 GiB, 132 multiprocessors"
std::string describe_device(int device);
/// Free and total bytes of the device's memory.
struct MemoryInfo {
  std::int64_t free = 0;
  std::int64_t total = 0;
};
MemoryInfo memory_info(int device);

/// Zeroed device memory, or null when there is too little.
void* allocate(int device, std::int64_t bytes);
void release(int device, void* data) noexcept;
/// Zeroed page-locked host memory, which copies to and from a device need to run beside other work; null when there is too
/// little.
void* allocate_pinned(std::int64_t bytes);
void release_pinned(void* data) noexcept;

/// A CUDA stream with what ops need besides: cuBLASLt handle and workspace (runtime/cuda/native_stream.h).
struct NativeStream;
struct NativeStreamDeleter {
  void operator()(NativeStream* stream) const noexcept;
};
using NativeStreamPointer = std::unique_ptr<NativeStream, NativeStreamDeleter>;
NativeStreamPointer create_stream(int device, bool high_priority);
void synchronize(NativeStream& stream);
/// Bytes between any two of host and device, ordered on the stream. Host memory that is not page-locked makes the call wait.
void copy(NativeStream& stream, void* to, const void* from, std::int64_t bytes);

struct NativeEvent;
struct NativeEventDeleter {
  void operator()(NativeEvent* event) const noexcept;
};
using NativeEventPointer = std::unique_ptr<NativeEvent, NativeEventDeleter>;
NativeEventPointer create_event();
void record(NativeEvent& event, NativeStream& stream);
/// While `stream` is captured: an event recorded in the same capture becomes a dependency in the graph, one recorded before
/// it a wait, at every launch, for the newest record then.
void wait(NativeStream& stream, const NativeEvent& event);
void synchronize(const NativeEvent& event);
/// Milliseconds on the device between two recorded events that have happened.
double elapsed_ms(const NativeEvent& begin, const NativeEvent& end);

/// A CUDA graph ready to launch.
struct NativeGraph;
struct NativeGraphDeleter {
  void operator()(NativeGraph* graph) const noexcept;
};
using NativeGraphPointer = std::unique_ptr<NativeGraph, NativeGraphDeleter>;
/// From here on work given to `stream`, and to streams that wait for it, is recorded and not run.
void begin_capture(NativeStream& stream);
/// Streams that joined must have been waited for by `stream`.
NativeGraphPointer end_capture(NativeStream& stream);
void launch(NativeStream& stream, NativeGraph& graph);

}  // namespace dm::cuda
