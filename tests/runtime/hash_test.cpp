// XXH3-128: the library's known answers, and the same hash in parts.
#include "runtime/hash.h"

#include <string>

#include <gtest/gtest.h>

namespace dm {
namespace {

TEST(Hash, IsWhatXxh128sumPrints) {
  EXPECT_EQ(xxh3_hex(""), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(xxh3_hex("abc"), "06b05ab6733a618578af5f94892f3950");
}

TEST(Hash, PartsHashAsTheWhole) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += static_cast<char>(i * 31 + i / 256);
  for (const std::size_t step : {1u, 7u, 64u, 1024u, 4999u}) {
    Xxh3 hash;
    for (std::size_t at = 0; at < text.size(); at += step) {
      const std::string part = text.substr(at, step);
      hash.update(part.data(), static_cast<std::int64_t>(part.size()));
    }
    EXPECT_EQ(hash.hex(), xxh3_hex(text)) << step;
  }
  EXPECT_EQ(Xxh3().hex(), xxh3_hex(""));
}

}  // namespace
}  // namespace dm
