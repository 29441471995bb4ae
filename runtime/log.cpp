// One write call a line, so that lines of several ranks do not tear.
#include "runtime/log.h"

#include <unistd.h>
#include <string>

namespace dm {
namespace {

void write_line(int descriptor, std::string line) {
  line += '\n';
  std::size_t done = 0;
  while (done < line.size()) {
    const ssize_t count = ::write(descriptor, line.data() + done, line.size() - done);
    if (count <= 0) return;
    done += static_cast<std::size_t>(count);
  }
}

}  // namespace

void Log::info(std::string_view line) const {
  if (speaks_) write_line(STDOUT_FILENO, std::string(line));
}

void Log::warn(std::string_view line) const {
  write_line(STDERR_FILENO, rank_name_ + ": " + std::string(line));
}

}  // namespace dm
