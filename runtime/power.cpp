// NVML by name, since neither its header nor its library needs to be there when the trainer is built.
#include "runtime/power.h"

#include <dlfcn.h>

#include "runtime/cuda/cuda.h"

namespace dm {

/// The library with the entry points in use (NVIDIA, "NVML API Reference Guide", device queries): all return 0 on success.
struct PowerMeter::Nvml {
  using Handle = void*;
  static constexpr int kMultiprocessorClock = 1;  // NVML_CLOCK_SM

  Nvml() = default;
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;
  ~Nvml() {
    if (started) shutdown();
    if (library) dlclose(library);
  }

  template <class Function>
  bool find(Function& function, const char* name) const {
    function = reinterpret_cast<Function>(dlsym(library, name));
    return function != nullptr;
  }

  /// False when the library, an entry point or the GPU is missing.
  bool open(const std::string& gpu) {
    library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) return false;
    int (*start)() = nullptr;
    int (*find_gpu)(const char*, Handle*) = nullptr;
    if (!find(start, "nvmlInit_v2") || !find(shutdown, "nvmlShutdown") || !find(find_gpu, "nvmlDeviceGetHandleByUUID") ||
        !find(energy, "nvmlDeviceGetTotalEnergyConsumption") || !find(clock, "nvmlDeviceGetClockInfo"))
      return false;
    started = start() == 0;
    return started && find_gpu(gpu.c_str(), &device) == 0;
  }

  void* library = nullptr;
  bool started = false;
  int (*shutdown)() = nullptr;
  int (*energy)(Handle, unsigned long long* millijoules) = nullptr;
  int (*clock)(Handle, int which, unsigned* mhz) = nullptr;
  Handle device = nullptr;
};

PowerMeter::PowerMeter(Device device) {
  if (device.kind != DeviceKind::cuda || device.planned) return;
  const auto nvml = std::make_shared<Nvml>();
  if (nvml->open(cuda::device_identity(device.index))) nvml_ = nvml;
}

std::optional<double> PowerMeter::joules() const {
  unsigned long long millijoules = 0;
  if (!nvml_ || nvml_->energy(nvml_->device, &millijoules) != 0) return std::nullopt;
  return 1e-3 * static_cast<double>(millijoules);
}

std::optional<double> PowerMeter::clock_mhz() const {
  unsigned mhz = 0;
  if (!nvml_ || nvml_->clock(nvml_->device, Nvml::kMultiprocessorClock, &mhz) != 0) return std::nullopt;
  return mhz;
}

}  // namespace dm
