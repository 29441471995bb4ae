// The stream position as a JSON object with one integer a field.
#include "dataloader/data_state.h"

#include <array>
#include <string_view>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace dm {
namespace {

constexpr std::array<std::pair<std::string_view, std::int64_t DataState::*>, 9> kFields{{
    {"sequences", &DataState::sequences},
    {"tokens", &DataState::tokens},
    {"epoch", &DataState::epoch},
    {"file", &DataState::file},
    {"line", &DataState::line},
    {"offset", &DataState::offset},
    {"token", &DataState::token},
    {"skipped_lines", &DataState::skipped_lines},
    {"skipped_frames", &DataState::skipped_frames},
}};

}  // namespace

void to_json(nlohmann::json& json, const DataState& state) {
  json = nlohmann::json::object();
  for (const auto& [name, member] : kFields) json[std::string(name)] = state.*member;
}

void from_json(const nlohmann::json& json, DataState& state) {
  if (!json.is_object()) fail("data state: not a JSON object");
  for (const auto& [name, member] : kFields) {
    const auto found = json.find(name);
    if (found == json.end()) fail(fmt::format("data state: \"{}\" is missing", name));
    const bool integer = found->is_number_integer() &&
                         (!found->is_number_unsigned() || found->get<std::uint64_t>() <= std::uint64_t{INT64_MAX});
    if (!integer || found->get<std::int64_t>() < 0)
      fail(fmt::format("data state: \"{}\" must be an integer of at least 0", name));
    state.*member = found->get<std::int64_t>();
  }
  for (const auto& [key, value] : json.items()) {
    bool known = false;
    for (const auto& field : kFields) known = known || field.first == key;
    if (!known) fail(fmt::format("data state: unknown key \"{}\"", key));
  }
}

}  // namespace dm
