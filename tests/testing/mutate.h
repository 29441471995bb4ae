// Deterministic damage for parser tests.
#pragma once

#include <algorithm>
#include <random>
#include <string>

namespace dm {

/// One to four random edits: a flipped bit, a random byte, another digit, a cut, a removed or a repeated stretch.
inline std::string mutate(std::string text, std::mt19937& random) {
  const auto below = [&](std::size_t n) {
    return n == 0 ? 0 : std::uniform_int_distribution<std::size_t>(0, n - 1)(random);
  };
  for (std::size_t edits = 1 + below(4); edits > 0; --edits) {
    const std::size_t at = below(text.size());
    const std::size_t count = std::min(text.size() - at, 1 + below(16));
    switch (below(6)) {
      case 0:
        if (!text.empty()) text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
        break;
      case 1:
        if (!text.empty()) text[at] = static_cast<char>(below(256));
        break;
      case 2: {
        const std::size_t digit = text.find_first_of("0123456789", at);
        if (digit != std::string::npos) text[digit] = static_cast<char>('0' + below(10));
        break;
      }
      case 3:
        if (below(8) == 0) text.resize(at);
        break;
      case 4:
        text.erase(at, count);
        break;
      default:
        text.insert(below(text.size()), text.substr(at, count));
    }
  }
  return text;
}

}  // namespace dm
