// Allocation on the host and the books about it.
#include "runtime/buffer.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "runtime/cuda/cuda.h"

namespace dm {
namespace {

constexpr std::align_val_t kAlignment{256};

}  // namespace

void MemoryReport::add(const std::string& name, std::int64_t bytes) {
  auto at = std::find_if(entries_.begin(), entries_.end(), [&](const auto& entry) { return entry.first == name; });
  if (at == entries_.end()) {
    entries_.emplace_back(name, bytes);
  } else {
    at->second += bytes;
  }
}

void MemoryReport::remove(const std::string& name, std::int64_t bytes) {
  add(name, -bytes);
  std::erase_if(entries_, [](const auto& entry) { return entry.second == 0; });
}

std::int64_t MemoryReport::total() const {
  std::int64_t sum = 0;
  for (const auto& [name, bytes] : entries_) sum += bytes;
  return sum;
}

Buffer::Buffer(std::string name, std::int64_t bytes, Device device, MemoryReport& report)
    : Buffer(std::move(name), bytes, device, device.kind == DeviceKind::cuda ? Memory::device : Memory::host, report) {}

Buffer Buffer::pinned(std::string name, std::int64_t bytes, MemoryReport& report) {
  return Buffer(std::move(name), bytes, Device::cpu(), cuda::device_count() > 0 ? Memory::pinned : Memory::host, report);
}

Buffer::Buffer(std::string name, std::int64_t bytes, Device device, Memory memory, MemoryReport& report)
    : name_(std::move(name)), bytes_(bytes), device_(device), memory_(memory) {
  require(bytes >= 0, "a buffer of negative size");
  if (bytes > 0 && !device.planned) {
    switch (memory) {
      case Memory::host:
        data_ = ::operator new(static_cast<std::size_t>(bytes), kAlignment, std::nothrow);
        if (data_) std::memset(data_, 0, static_cast<std::size_t>(bytes));
        break;
      case Memory::pinned:
        data_ = cuda::allocate_pinned(bytes);
        break;
      case Memory::device:
        data_ = cuda::allocate(device.index, bytes);
        break;
    }
    if (!data_) {
      fail("out of memory on " + name_of(device) + ": cannot take " + std::to_string(bytes >> 20) + " MiB for " + name_ +
           "; `densemamba plan` with the same options prints what the run needs: lower --train.micro_batch or "
           "--train.sequence, "
           "set --train.recompute block, or use more tensor ranks");
    }
  }
  report_ = &report;
  report_->add(name_, bytes_);
}

Buffer::~Buffer() {
  if (report_) report_->remove(name_, bytes_);
  if (!data_) return;
  switch (memory_) {
    case Memory::host:
      ::operator delete(data_, kAlignment);
      break;
    case Memory::pinned:
      cuda::release_pinned(data_);
      break;
    case Memory::device:
      cuda::release(device_.index, data_);
      break;
  }
}

void Buffer::swap(Buffer& other) noexcept {
  std::swap(name_, other.name_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  std::swap(memory_, other.memory_);
  std::swap(report_, other.report_);
}

Tensor Buffer::tensor(Shape shape, DType dtype) const {
  require(shape.numel() * size_of(dtype) <= bytes_, "a tensor larger than its buffer");
  return Tensor(data_, shape, dtype, device_);
}

}  // namespace dm
