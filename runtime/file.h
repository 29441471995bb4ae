// Files that say when they fail: every write is complete, every fsync and close is checked, and failures can be injected.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace dm {

class FaultInjector;

/// Owns one file descriptor (move-only). Every failure throws Error naming the operation, the path and errno in words:
/// failures to write as retryable (a disk failed or is full), failures to read as final.
class File {
 public:
  /// Opens an existing regular file for reading.
  static File open(const std::filesystem::path& path);
  /// Creates or empties a file for writing. `faults` (may be null; outlives the file) is asked at "save:write",
  /// "save:fsync" and "save:close", before each of them.
  static File create(const std::filesystem::path& path, FaultInjector* faults = nullptr);

  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  /// Closes without a check: whoever wrote and wants to keep the file calls close().
  ~File();

  /// Appends all bytes, in as many system calls as it takes.
  void write(const void* data, std::int64_t bytes);
  void write(std::string_view text) { write(text.data(), static_cast<std::int64_t>(text.size())); }
  /// Returns when the bytes are on the disk.
  void sync();
  void close();

  /// The file's size in bytes, asked anew at each call.
  std::int64_t size() const;
  /// Reads bytes [offset, offset + bytes); a file that ends before is an Error.
  void read_at(std::int64_t offset, void* data, std::int64_t bytes) const;

  const std::filesystem::path& path() const { return path_; }

 private:
  File(std::filesystem::path path, int descriptor, FaultInjector* faults);

  std::filesystem::path path_;
  int descriptor_ = -1;
  FaultInjector* faults_ = nullptr;
};

/// The whole file.
std::string read_file(const std::filesystem::path& path);

/// Writes and fsyncs `text` as the whole content of `path` (not atomically: write beside it and rename for that).
void write_file(const std::filesystem::path& path, std::string_view text, FaultInjector* faults = nullptr);

/// Renames, replacing a file of the new name.
void rename_path(const std::filesystem::path& from, const std::filesystem::path& to);

/// Makes the names inside a directory durable. Asks `faults` (may be null) at "save:fsync".
void sync_directory(const std::filesystem::path& path, FaultInjector* faults = nullptr);

}  // namespace dm
