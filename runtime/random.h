// Counter-based random numbers: element i of a named stream is a pure function of (seed, name, i).
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace dm {

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): 128 random bits for a
/// 128-bit counter under a 64-bit key.
std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key);

/// A stream of independent numbers addressed by index, so that any rank can make any slice of a global tensor.
class RandomStream {
 public:
  RandomStream(std::uint64_t seed, std::string_view name);

  /// Uniform in [0, 1) with 24 bits.
  float uniform(std::uint64_t index) const;
  /// Standard normal by Box-Muller from one counter block.
  float normal(std::uint64_t index) const;

 private:
  std::array<std::uint32_t, 4> block(std::uint64_t index) const;

  std::array<std::uint32_t, 2> key_;
  std::uint64_t name_hash_;
};

}  // namespace dm
