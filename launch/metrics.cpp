// Appending lines that may be lost but never tear.
#include "launch/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "runtime/error.h"

namespace dm {

Metrics::Metrics(const std::filesystem::path& path, const Log& log) : log_(log) {
  if (path.empty()) return;
  descriptor_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ < 0) {
    fail(fmt::format("cannot write {}: {}; choose another --run.dir", path.string(), std::strerror(errno)), ExitCode::usage);
  }
  char last = '\n';
  const off_t size = ::lseek(descriptor_, 0, SEEK_END);
  torn_ = size > 0 && ::pread(descriptor_, &last, 1, size - 1) == 1 && last != '\n';
}

Metrics::~Metrics() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void Metrics::append(const nlohmann::json& event) {
  if (descriptor_ < 0) return;
  const std::string line = fmt::format("{}{}\n", torn_ ? "\n" : "", event.dump());
  const ssize_t written = ::write(descriptor_, line.data(), line.size());
  if (written > 0) torn_ = line[static_cast<std::size_t>(written) - 1] != '\n';
  if (written == static_cast<ssize_t>(line.size()) || warned_) return;
  warned_ = true;
  log_.warn(fmt::format("metrics.jsonl: a line was lost ({}); training goes on",
                        written < 0 ? std::strerror(errno) : "the disk took only part of it"));
}

}  // namespace dm
