// XXH3-128: the hash of checkpoints and fingerprints. It finds damage, not forgery.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

struct XXH3_state_s;

namespace dm {

/// The 128-bit XXH3 hash (Yann Collet, xxHash) of `bytes` bytes as 32 lower-case hexadecimal digits, most significant
/// first: what `xxh128sum` prints.
std::string xxh3_hex(const void* data, std::int64_t bytes);
inline std::string xxh3_hex(std::string_view text) {
  return xxh3_hex(text.data(), static_cast<std::int64_t>(text.size()));
}

/// The same hash of bytes that come in parts.
class Xxh3 {
 public:
  Xxh3();
  void update(const void* data, std::int64_t bytes);
  std::string hex() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

}  // namespace dm
