// A bump allocator over one buffer, and the planning run that says how large the buffer must be.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/buffer.h"
#include "runtime/tensor.h"

namespace dm {

/// Hands out tensors one after the other and takes them back in reverse, scope by scope. A planning arena (on a
/// planned device) hands out tensors without memory and has no end: after a run of the real program on it, `peak()` is
/// the size in bytes that the real arena needs and `peak_by_tag()` its breakdown.
///
/// Contents of a fresh tensor are undefined. Alignment 256 bytes. Throws Error when the arena is exhausted.
class Arena {
 public:
  /// A planning arena for a device of that kind.
  explicit Arena(DeviceKind kind = DeviceKind::cpu) : device_(Device::plan(kind)) {}
  /// An arena over `buffer`, which it owns.
  explicit Arena(Buffer buffer) : buffer_(std::move(buffer)), device_(buffer_.device()) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// `tag` names the use in the memory table; a string literal (it is kept by reference).
  Tensor allocate(Shape shape, DType dtype, std::string_view tag);

  /// Everything allocated while a scope lives is given back at its end. Scopes nest.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), top_(arena.top_), depth_(arena.live_.size()) {}
    ~Scope() {
      arena_.top_ = top_;
      arena_.live_.resize(depth_);
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    std::int64_t top_;
    std::size_t depth_;
  };

  Device device() const { return device_; }
  std::int64_t used() const { return top_; }
  std::int64_t peak() const { return peak_; }
  /// Bytes by tag at the moment of the peak, largest first. Filled by planning arenas only.
  std::vector<std::pair<std::string, std::int64_t>> peak_by_tag() const;

 private:
  using Live = std::pair<std::string_view, std::int64_t>;

  Buffer buffer_;
  Device device_;
  std::int64_t top_ = 0;
  std::int64_t peak_ = 0;
  std::vector<Live> live_;     // planning only: what is allocated now
  std::vector<Live> at_peak_;  // planning only: what was allocated at the peak
};

}  // namespace dm
