// metrics.jsonl: one JSON object a line for every step and event, for scripts.
#pragma once

#include <filesystem>

#include <nlohmann/json_fwd.hpp>

#include "runtime/log.h"

namespace dm {

/// Appends to a file on the rank that has one; does nothing elsewhere. A line is one write. A disk that is full costs lines,
/// never the run: the first failure is warned of. What a full disk or a killed process left of a line stays a line of its
/// own. A number that is NaN or Inf is written as null.
class Metrics {
 public:
  /// An empty path writes nothing.
  Metrics(const std::filesystem::path& path, const Log& log);
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  void append(const nlohmann::json& event);

 private:
  int descriptor_ = -1;
  const Log& log_;
  bool torn_ = false;  ///< The file does not end with a whole line.
  bool warned_ = false;
};

}  // namespace dm
