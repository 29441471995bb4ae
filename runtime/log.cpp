// One write call a text, so that the texts of several ranks and threads do not tear.
#include "runtime/log.h"

#include <unistd.h>
#include <cerrno>
#include <string>

#include <fmt/format.h>

namespace dm {
namespace {

void write_line(int descriptor, std::string line) {
  line += '\n';
  std::size_t done = 0;
  while (done < line.size()) {
    const ssize_t count = ::write(descriptor, line.data() + done, line.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;
    done += static_cast<std::size_t>(count);
  }
}

}  // namespace

std::string rank_name(int rank, std::string_view host) {
  return fmt::format("rank {} ({})", rank, host);
}

void Log::info(std::string_view line) const {
  if (speaks_) write_line(STDOUT_FILENO, std::string(line));
}

void Log::warn(std::string_view line) const {
  write_line(STDERR_FILENO, rank_name_ + ": " + std::string(line));
}

}  // namespace dm
