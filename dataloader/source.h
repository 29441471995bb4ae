// Documents of .jsonl and .jsonl.zst files, in order, with the position of each.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dataloader/data_state.h"

namespace dm {

/// What to do with a unit that cannot be read: a line (no valid JSON, no string "text", invalid UTF-8, too long) or the rest
/// of a zstd frame (damaged or cut short).
enum class OnError : std::uint8_t { error, skip };
/// "error" | "skip"; anything else is an Error (usage).
OnError parse_on_error(std::string_view name);

/// A document belongs to the held-out part iff the XXH3-64 of its text is below holdout · 2^64, so that copies of one text
/// stay together. `all` keeps every document and looks at no hash.
enum class Split : std::uint8_t { all, train, valid };

struct SourceOptions {
  std::vector<std::filesystem::path> files;
  OnError on_error = OnError::error;
  Split split = Split::all;
  double holdout = 0;   ///< In [0, 1); above 0 when split is valid.
  bool repeat = false;  ///< Start over after the last file, for ever.
};

struct Document {
  std::string text;                  ///< Valid UTF-8.
  DataState position;                ///< Its first token; `sequences` and `tokens` are not known here and stay 0.
  std::vector<std::string> skipped;  ///< Place and fault of each unit skipped between the document before and this one.
};

/// Sorted matches of each pattern (a path, or a glob as of the shell), pattern by pattern. A file listed twice is read
/// twice. Throws Error (usage) naming the pattern that matches nothing, or the match that is no regular file, is empty or
/// unreadable.
std::vector<std::filesystem::path> expand_files(const std::vector<std::string>& patterns);

/// Reads files one after the other from `start` on. What lies before `start` in its file is decompressed and split into
/// lines, not parsed. With OnError::skip the same units are skipped whoever reads: after a damaged frame reading goes on at
/// the next frame's magic number in the file, if there is one; a line cut by the damage is lost with it.
class DocumentSource {
 public:
  DocumentSource(SourceOptions options, const DataState& start);
  ~DocumentSource();
  DocumentSource(const DocumentSource&) = delete;
  DocumentSource& operator=(const DocumentSource&) = delete;

  /// The next document, or nothing after the last file (or when `stop` was called). Throws Error: naming file, frame, line
  /// and byte offset of a bad unit; when a whole pass found no document to use; when `start` is no document of the data.
  std::optional<Document> next();
  /// Makes next() return nothing soon. May be called from another thread.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dm
