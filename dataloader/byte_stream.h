// The bytes of a file in order, decompressed when it is zstd, with damage reported instead of thrown.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/file.h"

namespace dm {

/// Reads a file whose name ends in ".zst" as a concatenation of zstd frames and skippable frames (RFC 8878), any other as it
/// is. Windows of up to 2 GiB are accepted. The cuts between reads and the place where damage is noticed are a function of
/// the file alone. Throws Error naming the file when the system cannot open or read it.
class ByteStream {
 public:
  explicit ByteStream(const std::filesystem::path& file);
  ~ByteStream();
  ByteStream(const ByteStream&) = delete;
  ByteStream& operator=(const ByteStream&) = delete;

  enum class Status : std::uint8_t { bytes, end, damaged };
  /// `bytes`: at least one byte, valid until the next call. `damaged`: the current frame cannot be read on; see damage().
  Status read(std::string_view& bytes);
  /// What is wrong with the frame.
  const std::string& damage() const { return damage_; }
  /// After `damaged`: goes on at the next frame's magic number behind the beginning of the damaged frame; without one the
  /// next read is `end`.
  void resynchronise();
  /// The current frame of the file, counted from 1, skippable frames included; 0 for a file that is not compressed.
  std::int64_t frame() const { return frame_; }

 private:
  struct Decoder;

  bool fill();

  File file_;
  std::int64_t file_size_;
  std::int64_t file_at_ = 0;          ///< Bytes of the file that went into input_ so far.
  std::unique_ptr<Decoder> decoder_;  ///< Null when the file is not compressed.
  std::vector<char> buffer_;
  std::string_view input_;  ///< The part of buffer_ that is not used yet.
  std::int64_t frame_begin_ = 0;
  std::int64_t frame_ = 0;
  bool in_frame_ = false;
  std::string damage_;
};

}  // namespace dm
