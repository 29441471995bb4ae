// XXH3-128 through the xxHash library.
#include "runtime/hash.h"

#include <new>

#include <fmt/format.h>
#include <xxhash.h>

namespace dm {
namespace {

std::string hex_of(XXH128_hash_t hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace

std::string xxh3_hex(const void* data, std::int64_t bytes) {
  return hex_of(XXH3_128bits(data, static_cast<std::size_t>(bytes)));
}

void Xxh3::Free::operator()(XXH3_state_s* state) const {
  XXH3_freeState(state);
}

Xxh3::Xxh3() : state_(XXH3_createState()) {
  if (!state_) throw std::bad_alloc();
  XXH3_128bits_reset(state_.get());
}

void Xxh3::update(const void* data, std::int64_t bytes) {
  XXH3_128bits_update(state_.get(), data, static_cast<std::size_t>(bytes));
}

std::string Xxh3::hex() const {
  return hex_of(XXH3_128bits_digest(state_.get()));
}

}  // namespace dm
