// The twin of runtime/cuda/cuda.cpp in a build without the CUDA toolkit: there is no GPU, and asking for one is refused.
#include "runtime/cuda/cuda.h"
#include "runtime/error.h"

namespace dm::cuda {
namespace {

[[noreturn]] void refuse() {
  fail("this build has no CUDA backend; use --run.device cpu, or build where nvcc is found", ExitCode::usage);
}

}  // namespace

bool is_built() {
  return false;
}
int device_count() {
  return 0;
}
void require_device(int) {
  refuse();
}
void require_architecture(const std::string&, int, int) {
  refuse();
}
std::string device_identity(int) {
  refuse();
}
std::string describe_device(int) {
  refuse();
}
MemoryInfo memory_info(int) {
  refuse();
}
void* allocate(int, std::int64_t) {
  refuse();
}
void release(int, void*) noexcept {}
void* allocate_pinned(std::int64_t) {
  refuse();
}
void release_pinned(void*) noexcept {}
NativeStreamPointer create_stream(int, bool) {
  refuse();
}
void NativeStreamDeleter::operator()(NativeStream*) const noexcept {}
void synchronize(NativeStream&) {
  refuse();
}
void copy(NativeStream&, void*, const void*, std::int64_t) {
  refuse();
}
NativeEventPointer create_event() {
  refuse();
}
void NativeEventDeleter::operator()(NativeEvent*) const noexcept {}
void record(NativeEvent&, NativeStream&) {
  refuse();
}
void wait(NativeStream&, const NativeEvent&) {
  refuse();
}
void synchronize(const NativeEvent&) {
  refuse();
}
double elapsed_ms(const NativeEvent&, const NativeEvent&) {
  refuse();
}
void begin_capture(NativeStream&) {
  refuse();
}
NativeGraphPointer end_capture(NativeStream&) {
  refuse();
}
void NativeGraphDeleter::operator()(NativeGraph*) const noexcept {}
void launch(NativeStream&, NativeGraph&) {
  refuse();
}

}  // namespace dm::cuda
