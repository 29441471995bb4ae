// Where the training stream stands: the position after the last consumed sequence, independent of any grid.
#pragma once

#include <cstdint>

#include <nlohmann/json_fwd.hpp>

namespace dm {

/// Names one token of the stream: token `token` of the document on the line that begins `offset` bytes into the decompressed
/// `file`. It is the next to be an input. A loader started here gives exactly the tokens that an uninterrupted one would
/// give next, on any grid, batch size and sequence length. A default state is the beginning.
struct DataState {
  std::int64_t sequences = 0;  ///< Consumed, over all ranks.
  std::int64_t tokens = 0;     ///< Consumed, over all ranks.
  std::int64_t epoch = 0;      ///< Complete passes over the files.
  std::int64_t file = 0;       ///< Index into the list of files.
  std::int64_t line = 0;       ///< Lines before this one in the file.
  std::int64_t offset = 0;     ///< Bytes before this line in the decompressed file.
  std::int64_t token = 0;      ///< Tokens of this document (BOS is the first) that are consumed.

  std::int64_t skipped_lines = 0;   ///< Bad lines before this position since the beginning (on_error skip).
  std::int64_t skipped_frames = 0;  ///< Damaged zstd frames, counted likewise.

  friend bool operator==(const DataState&, const DataState&) = default;
};

void to_json(nlohmann::json& json, const DataState& state);
/// Throws Error naming the key that is missing, unknown, no integer or negative.
void from_json(const nlohmann::json& json, DataState& state);

}  // namespace dm
