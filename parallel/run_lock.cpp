// A lock file with flock on it: flock decides on this host, the text decides where flock does not reach.
#include "parallel/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <exception>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/file.h"
#include "runtime/host.h"
#include "runtime/strict_json.h"

namespace dm {
namespace fs = std::filesystem;
namespace {

struct Holder {
  std::string host;
  int pid = 0;
  std::int64_t began = 0;  // clock ticks after boot; tells a process from a later one with the same pid

  std::string describe() const { return fmt::format("process {} on {}", pid, host); }
};

// Field 22 of /proc/<pid>/stat (proc(5)), or nothing when there is no such process, or one that has ended and waits for its
// parent (state Z or X): in a container that can take for ever. The second field, the command, may hold blanks and ends
// with the last ')'.
std::optional<std::int64_t> process_began(int pid) {
  std::ifstream stream(fmt::format("/proc/{}/stat", pid));
  std::string line;
  if (!std::getline(stream, line)) return std::nullopt;
  std::istringstream fields(line.substr(std::min(line.rfind(')'), line.size() - 1) + 1));
  std::string state, skipped;
  fields >> state;
  if (state == "Z" || state == "X") return std::nullopt;
  for (int field = 4; field < 22; ++field) fields >> skipped;
  std::int64_t began = 0;
  return fields >> began ? std::optional(began) : std::nullopt;
}

Holder this_process() {
  return {host_name(), static_cast<int>(::getpid()), process_began(::getpid()).value_or(0)};
}

// Nothing when the text is not a holder's: its writer was killed in between.
std::optional<Holder> parse_holder(const std::string& text, const fs::path& path) {
  try {
    const nlohmann::json json = parse_strict_json(text, path.string());
    return Holder{json.at("host").get<std::string>(), json.at("pid").get<int>(), json.at("began").get<std::int64_t>()};
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

[[noreturn]] void refuse(const fs::path& path, const std::string& holder) {
  fail(
      fmt::format("{} is in use by {}; wait for that job, or choose another run directory (if that job is surely gone, "
                  "remove {})",
                  path.parent_path().string(), holder, path.string()));
}

bool same_file(int descriptor, const fs::path& path) {
  struct stat opened, named;
  return ::fstat(descriptor, &opened) == 0 && ::stat(path.c_str(), &named) == 0 && opened.st_ino == named.st_ino &&
         opened.st_dev == named.st_dev;
}

// Opens the file and flocks it; says whether the file is new and whether the file system knows flock.
struct Opened {
  int descriptor = -1;
  bool created = false;
  bool flocked = false;
};

Opened open_lock(const fs::path& path) {
  for (;;) {
    Opened lock;
    lock.descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    lock.created = lock.descriptor >= 0;
    if (!lock.created && errno == EEXIST) lock.descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (lock.descriptor < 0 && errno == ENOENT && fs::exists(path.parent_path())) continue;  // its holder just removed it
    if (lock.descriptor < 0)
      fail(fmt::format("cannot lock the run: cannot open {}: {}", path.string(), std::strerror(errno)));
    if (::flock(lock.descriptor, LOCK_EX | LOCK_NB) == 0) {
      lock.flocked = true;
    } else if (errno == EWOULDBLOCK) {
      const auto holder = parse_holder(read_file(path), path);
      ::close(lock.descriptor);
      refuse(path, holder ? holder->describe() : "another process");
    }
    if (same_file(lock.descriptor, path)) return lock;
    ::close(lock.descriptor);  // its holder removed it between our open and our flock
  }
}

}  // namespace

RunLock::RunLock(const fs::path& run_directory, const Log& log) : path_(run_directory / "lock") {
  const Opened lock = open_lock(path_);
  descriptor_ = lock.descriptor;
  try {
    const Holder self = this_process();
    if (!lock.created) {
      const auto holder = parse_holder(read_file(path_), path_);
      if (!holder && !lock.flocked) refuse(path_, "a process that has not written its name");
      if (holder && (holder->host != self.host || process_began(holder->pid) == holder->began)) {
        refuse(path_, holder->describe());
      }
      log.warn(fmt::format("taking over {} of {}, which is gone", path_.string(),
                           holder ? holder->describe() : "a process that did not write its name"));
    }
    const std::string text = nlohmann::json{{"host", self.host}, {"pid", self.pid}, {"began", self.began}}.dump() + "\n";
    if (::ftruncate(descriptor_, 0) != 0 ||
        ::pwrite(descriptor_, text.data(), text.size(), 0) != static_cast<ssize_t>(text.size()) ||
        ::fsync(descriptor_) != 0) {
      fail(fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno)), ExitCode::retryable);
    }
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

RunLock::~RunLock() {
  if (same_file(descriptor_, path_)) ::unlink(path_.c_str());
  ::close(descriptor_);
}

}  // namespace dm
