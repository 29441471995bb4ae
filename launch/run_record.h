// What a checkpoint remembers of its run.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "dataloader/data_state.h"
#include "dataloader/fingerprint.h"

namespace dm {

/// The metadata of a checkpoint's manifest.
struct RunRecord {
  std::vector<std::pair<std::string, std::string>> options;  ///< OptionTable::values() with the model resolved.
  DataFingerprint data;
  DataState data_state;
  std::int64_t updates = 0;          ///< Optimizer updates done: steps without those skipped for NaN or Inf.
  std::int64_t nonfinite_steps = 0;  ///< Those skipped.
  std::string grid;                  ///< "data 2 × tensor 2", for people.
  std::string build;                 ///< Program version, for people.
};

nlohmann::json to_metadata(const RunRecord& record);
/// Throws Error naming what is missing or malformed; `source` opens the message.
RunRecord from_metadata(const nlohmann::json& metadata, const std::string& source);

}  // namespace dm
