// Owned memory: every byte the trainer holds has a name and is counted in one report.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "runtime/device.h"
#include "runtime/tensor.h"

namespace dm {

/// Bytes by name, in the order they were first taken. One report a rank; passed to whoever allocates.
class MemoryReport {
 public:
  void add(const std::string& name, std::int64_t bytes);
  void remove(const std::string& name, std::int64_t bytes);
  std::int64_t total() const;
  const std::vector<std::pair<std::string, std::int64_t>>& entries() const { return entries_; }

 private:
  std::vector<std::pair<std::string, std::int64_t>> entries_;
};

/// Move-only owner of `bytes` of zeroed memory on `device`, 256-byte aligned, counted in `report` under `name`
/// until it is destroyed. On a planned device it counts and holds nothing. `report` must outlive the buffer.
/// Throws Error that names the buffer and its size when memory is short.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::string name, std::int64_t bytes, Device device, MemoryReport& report);
  /// Host memory, page-locked where there is a GPU to copy to or from.
  static Buffer pinned(std::string name, std::int64_t bytes, MemoryReport& report);
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer moved(std::move(other));
    swap(moved);
    return *this;
  }
  ~Buffer();

  void* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  const std::string& name() const { return name_; }
  /// The whole buffer (or its first elements) as a tensor.
  Tensor tensor(Shape shape, DType dtype) const;

 private:
  enum class Memory : std::uint8_t { host, pinned, device };
  Buffer(std::string name, std::int64_t bytes, Device device, Memory memory, MemoryReport& report);
  void swap(Buffer& other) noexcept;

  std::string name_;
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
  Device device_;
  Memory memory_ = Memory::host;
  MemoryReport* report_ = nullptr;
};

}  // namespace dm
