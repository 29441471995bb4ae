// Philox4x32-10 and the two distributions made from it.
#include "runtime/random.h"

#include <cmath>
#include <numbers>

namespace dm {
namespace {

std::uint64_t fnv1a(std::string_view text) {
  std::uint64_t hash = 0xcbf29ce484222325ull;
  for (const char letter : text) hash = (hash ^ static_cast<unsigned char>(letter)) * 0x100000001b3ull;
  return hash;
}

}  // namespace

std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t left = 0xD2511F53ull * counter[0];
    const std::uint64_t right = 0xCD9E8D57ull * counter[2];
    counter = {static_cast<std::uint32_t>(right >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(right),
               static_cast<std::uint32_t>(left >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(left)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

RandomStream::RandomStream(std::uint64_t seed, std::string_view name)
    : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)}, name_hash_(fnv1a(name)) {}

std::array<std::uint32_t, 4> RandomStream::block(std::uint64_t index) const {
  return philox4x32({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                     static_cast<std::uint32_t>(name_hash_), static_cast<std::uint32_t>(name_hash_ >> 32)},
                    key_);
}

float RandomStream::uniform(std::uint64_t index) const {
  return static_cast<float>(block(index)[0] >> 8) * 0x1p-24f;
}

float RandomStream::normal(std::uint64_t index) const {
  const auto bits = block(index);
  const double radius = std::sqrt(-2.0 * std::log((static_cast<double>(bits[0]) + 1.0) * 0x1p-32));
  return static_cast<float>(radius * std::cos(2.0 * std::numbers::pi * static_cast<double>(bits[1]) * 0x1p-32));
}

}  // namespace dm
