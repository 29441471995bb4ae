// JSON of the record.
#include "launch/run_record.h"

#include <fmt/format.h>

#include "runtime/error.h"

namespace dm {
nlohmann::json to_metadata(const RunRecord& record) {
  nlohmann::json options = nlohmann::json::object();
  for (const auto& [key, value] : record.options) options[key] = value;
  return {{"options", options},
          {"data", record.data},
          {"data_state", record.data_state},
          {"updates", record.updates},
          {"nonfinite_steps", record.nonfinite_steps},
          {"grid", record.grid},
          {"build", record.build}};
}

RunRecord from_metadata(const nlohmann::json& metadata, const std::string& source) {
  try {
    RunRecord record;
    for (const auto& [key, value] : metadata.at("options").items())
      record.options.emplace_back(key, value.get<std::string>());
    metadata.at("data").get_to(record.data);
    metadata.at("data_state").get_to(record.data_state);
    metadata.at("updates").get_to(record.updates);
    metadata.at("nonfinite_steps").get_to(record.nonfinite_steps);
    metadata.at("grid").get_to(record.grid);
    metadata.at("build").get_to(record.build);
    return record;
  } catch (const nlohmann::json::exception& error) {
    fail(fmt::format("{}: the run's record is incomplete ({}); it was not written by a training run", source, error.what()));
  }
}

}  // namespace dm
