// JSON from files that may be damaged: parsed with positions in errors and without silently dropped duplicate keys.
#pragma once

#include <string_view>

#include <nlohmann/json.hpp>

namespace dm {

/// Parses all of `text`. Throws Error that begins with `what` (the file's name, and the place in it) on a syntax error,
/// invalid UTF-8 or a key that occurs twice in one object.
nlohmann::json parse_strict_json(std::string_view text, std::string_view what);

}  // namespace dm
