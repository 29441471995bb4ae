// Which data a run trains on, so that a resume with other data is refused with what differs.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "dataloader/tokenizer.h"

namespace dm {

/// The content of the files in their order, the tokenizer and the held-out share. Names are file names without folders and
/// only for messages: a moved or renamed file is the same file.
struct DataFingerprint {
  struct File {
    std::string name;
    std::int64_t size = 0;
    std::string hash;  ///< XXH3-128 (hex) over 64 KiB at 16 evenly spaced places, the first and the last bytes among them.

    bool same_content(const File& other) const { return size == other.size && hash == other.hash; }
    friend bool operator==(const File&, const File&) = default;
  };
  std::vector<File> files;
  std::string tokenizer;  ///< Tokenizer::hash
  double holdout = 0;

  /// Reads at most 1 MiB of each file.
  static DataFingerprint of(const std::vector<std::filesystem::path>& files, const Tokenizer& tokenizer, double holdout = 0);

  friend bool operator==(const DataFingerprint&, const DataFingerprint&) = default;
};

void to_json(nlohmann::json& json, const DataFingerprint& fingerprint);
/// Throws Error naming the key that is missing or of another type.
void from_json(const nlohmann::json& json, DataFingerprint& fingerprint);

/// A sentence saying how `now` differs from `then` (a file missing, new, replaced or in another place, another tokenizer,
/// another held-out share); empty when a run on `then` can go on with `now`.
std::string difference(const DataFingerprint& then, const DataFingerprint& now);

/// Throws Error (usage) naming both files when one file's content is in both lists.
void require_disjoint(const DataFingerprint& train, const DataFingerprint& valid);

}  // namespace dm
