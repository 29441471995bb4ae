// The CUDA runtime behind runtime/cuda/cuda.h.
#include "runtime/cuda/cuda.h"

#include <cstring>

#include "runtime/cuda/native_stream.h"

namespace dm::cuda {
namespace {

/// The architecture that the kernels are compiled for (CMakeLists.txt).
constexpr int kMajor = 9, kMinor = 0;
/// What cuBLASLt's algorithms want on Hopper (cuBLAS manual, cublasSetWorkspace).
constexpr std::size_t kWorkspaceBytes = std::size_t{32} << 20;

}  // namespace

struct NativeEvent {
  cudaEvent_t event = nullptr;
  unsigned long long capture = 0;  ///< In which it was recorded; 0: in none.
};

struct NativeGraph {
  cudaGraphExec_t graph = nullptr;
};

namespace {

/// The capture that `stream` is part of, or 0.
unsigned long long capture_of(const NativeStream& stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  unsigned long long id = 0;
  CUDA_CHECK(cudaStreamGetCaptureInfo(stream.stream, &status, &id));
  return status == cudaStreamCaptureStatusActive ? id : 0;
}

}  // namespace

bool is_built() {
  return true;
}

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

void require_device(int device) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    fail(std::string("no usable GPU: ") + (status == cudaSuccess ? "the driver reports none" : cudaGetErrorString(status)) +
             "; use --run.device cpu, or run where nvidia-smi lists a GPU",
         ExitCode::usage);
  }
  if (device >= count) {
    fail("there is no GPU " + std::to_string(device) + ": this process sees " + std::to_string(count), ExitCode::usage);
  }
  cudaDeviceProp properties{};
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  require_architecture(properties.name, properties.major, properties.minor);
}

void require_architecture(const std::string& name, int major, int minor) {
  if (major == kMajor && minor == kMinor) return;
  fail(name + " has compute capability " + std::to_string(major) + "." + std::to_string(minor) +
           "; this program was built for " + std::to_string(kMajor) + "." + std::to_string(kMinor) +
           " (H100, H200); use --run.device cpu",
       ExitCode::usage);
}

std::string device_identity(int device) {
  constexpr char kDigits[] = "0123456789abcdef";
  cudaDeviceProp properties{};
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  std::string text = "GPU-";
  for (std::size_t i = 0; i < sizeof properties.uuid.bytes; ++i) {
    const auto byte = static_cast<unsigned char>(properties.uuid.bytes[i]);
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
    if (i == 3 || i == 5 || i == 7 || i == 9) text += '-';
  }
  return text;
}

std::string describe_device(int device) {
  cudaDeviceProp properties{};
  CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  const auto tenths = static_cast<long>(static_cast<double>(properties.totalGlobalMem) * 10 / (1 << 30));
  return std::string(properties.name) + ", " + std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " GiB, " +
         std::to_string(properties.multiProcessorCount) + " multiprocessors";
}

MemoryInfo memory_info(int device) {
  std::size_t free = 0, total = 0;
  CUDA_CHECK(cudaSetDevice(device));
  CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return {static_cast<std::int64_t>(free), static_cast<std::int64_t>(total)};
}

void* allocate(int device, std::int64_t bytes) {
  void* data = nullptr;
  CUDA_CHECK(cudaSetDevice(device));
  if (cudaMalloc(&data, static_cast<std::size_t>(bytes)) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  CUDA_CHECK(cudaMemset(data, 0, static_cast<std::size_t>(bytes)));
  CUDA_CHECK(cudaDeviceSynchronize());
  return data;
}

void release(int device, void* data) noexcept {
  cudaSetDevice(device);
  cudaFree(data);
}

void* allocate_pinned(std::int64_t bytes) {
  void* data = nullptr;
  if (cudaMallocHost(&data, static_cast<std::size_t>(bytes)) != cudaSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  std::memset(data, 0, static_cast<std::size_t>(bytes));
  return data;
}

void release_pinned(void* data) noexcept {
  cudaFreeHost(data);
}

NativeStreamPointer create_stream(int device, bool high_priority) {
  require_device(device);
  NativeStreamPointer stream(new NativeStream);
  stream->device = device;
  CUDA_CHECK(cudaDeviceGetAttribute(&stream->multiprocessors, cudaDevAttrMultiProcessorCount, device));
  CUDA_CHECK(cudaSetDevice(device));
  int lowest = 0, highest = 0;
  CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
  CUDA_CHECK(cudaStreamCreateWithPriority(&stream->stream, cudaStreamNonBlocking, high_priority ? highest : lowest));
  CUDA_CHECK(cublasLtCreate(&stream->blas));
  CUDA_CHECK(cudaMalloc(&stream->workspace, kWorkspaceBytes));
  stream->workspace_bytes = kWorkspaceBytes;
  return stream;
}

void NativeStreamDeleter::operator()(NativeStream* stream) const noexcept {
  cudaSetDevice(stream->device);
  if (stream->stream) cudaStreamSynchronize(stream->stream);
  if (stream->workspace) cudaFree(stream->workspace);
  if (stream->blas) cublasLtDestroy(stream->blas);
  if (stream->stream) cudaStreamDestroy(stream->stream);
  delete stream;
}

void synchronize(NativeStream& stream) {
  CUDA_CHECK(cudaStreamSynchronize(stream.stream));
}

void copy(NativeStream& stream, void* to, const void* from, std::int64_t bytes) {
  CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault, stream.stream));
}

NativeEventPointer create_event() {
  NativeEventPointer event(new NativeEvent);
  CUDA_CHECK(cudaEventCreate(&event->event));
  return event;
}

void NativeEventDeleter::operator()(NativeEvent* event) const noexcept {
  if (event->event) cudaEventDestroy(event->event);
  delete event;
}

void record(NativeEvent& event, NativeStream& stream) {
  event.capture = capture_of(stream);
  CUDA_CHECK(cudaEventRecord(event.event, stream.stream));
}

void wait(NativeStream& stream, const NativeEvent& event) {
  const bool from_outside = event.capture == 0 && capture_of(stream) != 0;
  CUDA_CHECK(cudaStreamWaitEvent(stream.stream, event.event, from_outside ? cudaEventWaitExternal : cudaEventWaitDefault));
}

void synchronize(const NativeEvent& event) {
  CUDA_CHECK(cudaEventSynchronize(event.event));
}

double elapsed_ms(const NativeEvent& begin, const NativeEvent& end) {
  float milliseconds = 0;
  CUDA_CHECK(cudaEventElapsedTime(&milliseconds, begin.event, end.event));
  return static_cast<double>(milliseconds);
}

void begin_capture(NativeStream& stream) {
  CUDA_CHECK(cudaStreamBeginCapture(stream.stream, cudaStreamCaptureModeThreadLocal));
}

NativeGraphPointer end_capture(NativeStream& stream) {
  cudaGraph_t recorded = nullptr;
  CUDA_CHECK(cudaStreamEndCapture(stream.stream, &recorded));
  NativeGraphPointer graph(new NativeGraph);
  const cudaError_t status = cudaGraphInstantiate(&graph->graph, recorded, cudaGraphInstantiateFlagUseNodePriority);
  cudaGraphDestroy(recorded);
  CUDA_CHECK(status);
  return graph;
}

void NativeGraphDeleter::operator()(NativeGraph* graph) const noexcept {
  if (graph->graph) cudaGraphExecDestroy(graph->graph);
  delete graph;
}

void launch(NativeStream& stream, NativeGraph& graph) {
  CUDA_CHECK(cudaGraphLaunch(graph.graph, stream.stream));
}

}  // namespace dm::cuda
