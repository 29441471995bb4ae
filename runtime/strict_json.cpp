// nlohmann's parser with a look at every key.
#include "runtime/strict_json.h"

#include <set>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "runtime/error.h"

namespace dm {

nlohmann::json parse_strict_json(std::string_view text, std::string_view what) {
  using Event = nlohmann::json::parse_event_t;
  std::vector<std::set<std::string>> open_objects;
  const auto look = [&](int, Event event, nlohmann::json& parsed) {
    if (event == Event::object_start) open_objects.emplace_back();
    if (event == Event::object_end) open_objects.pop_back();
    if (event == Event::key && !open_objects.back().insert(parsed.get<std::string>()).second) {
      fail(fmt::format("{}: the key {} occurs twice", what, parsed.get_ref<const std::string&>()));
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, look);
  } catch (const nlohmann::json::exception& error) {
    fail(fmt::format("{}: {}", what, error.what()));
  }
}

}  // namespace dm
