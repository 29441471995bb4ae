// A small cache from words to token ids: two ways, one cache line an entry, never more memory than at the start.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <xxhash.h>

namespace dm {

/// Remembers the ids of recent words of at most kMaxWord bytes and kMaxIds ids, and answers with what was put in for exactly
/// the same bytes. 4 MiB. Not thread-safe.
class WordCache {
 public:
  static constexpr std::size_t kMaxWord = 30;
  static constexpr std::size_t kMaxIds = 8;

  WordCache() : entries_(kEntries) {}

  /// Appends the ids of `word` (not empty) to `ids`, or returns false.
  bool find(std::string_view word, std::vector<std::int32_t>& ids) {
    if (word.size() > kMaxWord) return false;
    Entry* const pair = pair_of(word);
    if (!pair[0].holds(word)) {
      if (!pair[1].holds(word)) return false;
      std::swap(pair[0], pair[1]);
    }
    ids.insert(ids.end(), pair[0].ids, pair[0].ids + pair[0].count);
    return true;
  }

  /// Keeps a word that find did not know, in place of the older of the two in its pair.
  void put(std::string_view word, std::span<const std::int32_t> ids) {
    if (word.size() > kMaxWord || ids.size() > kMaxIds) return;
    Entry* const pair = pair_of(word);
    pair[1] = pair[0];
    pair[0].length = static_cast<std::uint8_t>(word.size());
    pair[0].count = static_cast<std::uint8_t>(ids.size());
    std::copy(word.begin(), word.end(), pair[0].word);
    std::copy(ids.begin(), ids.end(), pair[0].ids);
  }

 private:
  static constexpr std::size_t kEntries = std::size_t{1} << 16;

  struct alignas(64) Entry {
    std::uint8_t length = 0;
    std::uint8_t count = 0;
    char word[kMaxWord];
    std::int32_t ids[kMaxIds];

    bool holds(std::string_view other) const {
      return length == other.size() && std::memcmp(word, other.data(), other.size()) == 0;
    }
  };

  Entry* pair_of(std::string_view word) { return &entries_[XXH3_64bits(word.data(), word.size()) % (kEntries / 2) * 2]; }

  std::vector<Entry> entries_;
};

}  // namespace dm
