// POSIX files with every return value looked at.
#include "runtime/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "runtime/error.h"
#include "runtime/fault.h"

namespace dm {
namespace {

[[noreturn]] void fail_io(std::string_view what, const std::filesystem::path& path, int error, ExitCode code) {
  fail(fmt::format("cannot {} {}: {}", what, path.string(), std::strerror(error)), code);
}

Fault ask(FaultInjector* faults, std::string_view point) {
  return faults ? faults->at(point) : Fault::none;
}

int open_descriptor(const std::filesystem::path& path, int flags) {
  int descriptor;
  do {
    descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  } while (descriptor < 0 && errno == EINTR);
  return descriptor;
}

}  // namespace

File::File(std::filesystem::path path, int descriptor, FaultInjector* faults)
    : path_(std::move(path)), descriptor_(descriptor), faults_(faults) {}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)), faults_(other.faults_) {}

File& File::operator=(File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(faults_, other.faults_);
  return *this;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File File::open(const std::filesystem::path& path) {
  File file(path, open_descriptor(path, O_RDONLY), nullptr);
  if (file.descriptor_ < 0) fail_io("open", path, errno, ExitCode::failure);
  struct stat status;
  if (::fstat(file.descriptor_, &status) != 0) fail_io("look at", path, errno, ExitCode::failure);
  if (!S_ISREG(status.st_mode)) fail(fmt::format("cannot read {}: it is not a file", path.string()));
  return file;
}

File File::create(const std::filesystem::path& path, FaultInjector* faults) {
  File file(path, open_descriptor(path, O_WRONLY | O_CREAT | O_TRUNC), faults);
  if (file.descriptor_ < 0) fail_io("create", path, errno, ExitCode::retryable);
  return file;
}

void File::write(const void* data, std::int64_t bytes) {
  const Fault fault = ask(faults_, "save:write");
  if (fault == Fault::disk_full) fail_io("write", path_, ENOSPC, ExitCode::retryable);
  if (fault == Fault::short_write) bytes /= 2;

  const auto* next = static_cast<const std::byte*>(data);
  while (bytes > 0) {
    const ssize_t count = ::write(descriptor_, next, static_cast<std::size_t>(bytes));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_io("write", path_, errno, ExitCode::retryable);
    next += count;
    bytes -= count;
  }
  if (fault == Fault::short_write) fail_io("write all of", path_, ENOSPC, ExitCode::retryable);
}

void File::sync() {
  const int error = ask(faults_, "save:fsync") == Fault::fsync ? EIO : ::fsync(descriptor_) != 0 ? errno : 0;
  if (error != 0) fail_io("fsync", path_, error, ExitCode::retryable);
}

void File::close() {
  const Fault fault = ask(faults_, "save:close");
  // The descriptor is gone whatever close returns, EINTR included (Linux).
  const int result = ::close(std::exchange(descriptor_, -1));
  const int error = fault == Fault::close ? EIO : result != 0 && errno != EINTR ? errno : 0;
  if (error != 0) fail_io("close", path_, error, ExitCode::retryable);
}

std::int64_t File::size() const {
  struct stat status;
  if (::fstat(descriptor_, &status) != 0) fail_io("look at", path_, errno, ExitCode::failure);
  return status.st_size;
}

void File::read_at(std::int64_t offset, void* data, std::int64_t bytes) const {
  auto* next = static_cast<std::byte*>(data);
  while (bytes > 0) {
    const ssize_t count = ::pread(descriptor_, next, static_cast<std::size_t>(bytes), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail_io("read", path_, errno, ExitCode::failure);
    if (count == 0) fail(fmt::format("{} ends at byte {}, {} bytes too early", path_.string(), offset, bytes));
    next += count;
    offset += count;
    bytes -= count;
  }
}

std::string read_file(const std::filesystem::path& path) {
  const File file = File::open(path);
  std::string text(static_cast<std::size_t>(file.size()), '\0');
  file.read_at(0, text.data(), static_cast<std::int64_t>(text.size()));
  return text;
}

void write_file(const std::filesystem::path& path, std::string_view text, FaultInjector* faults) {
  File file = File::create(path, faults);
  file.write(text);
  file.sync();
  file.close();
}

void rename_path(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    fail(fmt::format("cannot rename {} to {}: {}", from.string(), to.string(), std::strerror(errno)), ExitCode::retryable);
  }
}

void sync_directory(const std::filesystem::path& path, FaultInjector* faults) {
  const Fault fault = ask(faults, "save:fsync");
  const int descriptor = open_descriptor(path, O_RDONLY | O_DIRECTORY);
  if (descriptor < 0) fail_io("open directory", path, errno, ExitCode::retryable);
  const int error = fault == Fault::fsync ? EIO : ::fsync(descriptor) != 0 ? errno : 0;
  ::close(descriptor);
  if (error != 0) fail_io("fsync directory", path, error, ExitCode::retryable);
}

}  // namespace dm
