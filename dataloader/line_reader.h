// Lines of a file with their place in the decompressed stream, and the text of a JSON line.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include <simdjson.h>

#include "dataloader/byte_stream.h"

namespace dm {

/// A longer line is a bad one: parsing takes about six times its size.
inline constexpr std::int64_t kMaxLineBytes = std::int64_t{512} << 20;

/// Splits a file at newlines. Every call of next() passes one unit: a line, or damage together with the line that it cuts;
/// either counts as one line, so (offset, line) names a place once.
class LineReader {
 public:
  explicit LineReader(const std::filesystem::path& file, std::int64_t max_line_bytes = kMaxLineBytes)
      : stream_(file), max_line_bytes_(max_line_bytes) {}

  enum class Status : std::uint8_t { line, end, too_long, damaged };
  /// Sets `line`, without its newline, when the status is `line`. The call after `damaged` goes on behind the
  /// damaged frame.
  Status next(std::string& line);
  /// What was wrong at the last `damaged`.
  const std::string& damage() const { return stream_.damage(); }

  /// The next unit: bytes and units before it, and the frame that it is expected in.
  std::int64_t offset() const { return offset_; }
  std::int64_t line() const { return line_; }
  std::int64_t frame() const { return stream_.frame(); }

 private:
  ByteStream stream_;
  std::int64_t max_line_bytes_;
  std::string_view chunk_;  ///< Read and not yet given out.
  std::int64_t offset_ = 0;
  std::int64_t line_ = 0;
  bool damaged_ = false;  ///< The next read must find the next frame first.
};

/// Takes the document out of a line {"text": …, …}: one string "text" and any other keys, all of it checked JSON and UTF-8.
class LineParser {
 public:
  /// Sets `text` and returns an empty string, or returns what is wrong with the line. May grow the capacity of `line`.
  std::string parse(std::string& line, std::string& text);

 private:
  simdjson::ondemand::parser parser_;
};

}  // namespace dm
