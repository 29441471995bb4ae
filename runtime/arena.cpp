// The bump pointer, and in planning the record of what stood at the peak.
#include "runtime/arena.h"

#include <algorithm>
#include <map>

namespace dm {

Tensor Arena::allocate(Shape shape, DType dtype, std::string_view tag) {
  constexpr std::int64_t kAlignment = 256;
  const std::int64_t bytes = (shape.numel() * size_of(dtype) + kAlignment - 1) / kAlignment * kAlignment;
  const bool planning = device_.planned;
  if (!planning && top_ + bytes > buffer_.bytes()) {
    fail("the arena of " + std::to_string(buffer_.bytes()) + " bytes is exhausted by " + std::string(tag) + " " +
         to_string(shape) + ": the plan it was sized by ran another shape");
  }
  void* data = planning ? nullptr : static_cast<std::byte*>(buffer_.data()) + top_;
  top_ += bytes;
  if (planning) live_.emplace_back(tag, bytes);
  if (top_ > peak_) {
    peak_ = top_;
    if (planning) at_peak_ = live_;
  }
  return Tensor(data, shape, dtype, device_);
}

std::vector<std::pair<std::string, std::int64_t>> Arena::peak_by_tag() const {
  std::map<std::string, std::int64_t> sums;
  for (const auto& [tag, bytes] : at_peak_) sums[std::string(tag)] += bytes;
  std::vector<std::pair<std::string, std::int64_t>> table(sums.begin(), sums.end());
  std::stable_sort(table.begin(), table.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  return table;
}

}  // namespace dm
