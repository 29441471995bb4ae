// Where the time of a step goes: seconds and calls by named range, cheap enough to be always on.
#pragma once

#include <chrono>
#include <cstdint>
#include <string_view>
#include <vector>

namespace dm {

/// The process's monotonic clock in seconds.
inline double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Accumulates leaf ranges: ops of `kernels/`, collectives of `parallel/`, waits for data, checkpoint stalls.
/// Ranges of one trace must not overlap, so their sum against the wall clock is the share of explained time.
/// Not thread-safe: one trace a training thread.
class Trace {
 public:
  enum class Kind : std::uint8_t { compute, communication, data_wait, checkpoint };

  struct Entry {
    std::string_view name;
    Kind kind;
    std::int64_t calls = 0;
    double seconds = 0;
  };

  /// Times its own life. `trace` may be null: then it does nothing. `name` must be a string literal.
  class Range {
   public:
    Range(Trace* trace, std::string_view name, Kind kind)
        : trace_(trace), name_(name), kind_(kind), begin_(trace ? now_seconds() : 0) {}
    ~Range() {
      if (trace_) trace_->add(name_, kind_, now_seconds() - begin_);
    }
    Range(const Range&) = delete;
    Range& operator=(const Range&) = delete;

   private:
    Trace* trace_;
    std::string_view name_;
    Kind kind_;
    double begin_;
  };

  void add(std::string_view name, Kind kind, double seconds) {
    for (Entry& entry : entries_) {
      if (entry.kind == kind && entry.name == name) {
        ++entry.calls;
        entry.seconds += seconds;
        return;
      }
    }
    entries_.push_back({name, kind, 1, seconds});
  }

  double seconds(Kind kind) const {
    double sum = 0;
    for (const Entry& entry : entries_) sum += entry.kind == kind ? entry.seconds : 0;
    return sum;
  }
  const std::vector<Entry>& entries() const { return entries_; }
  void reset() { entries_.clear(); }

 private:
  std::vector<Entry> entries_;
};

}  // namespace dm
