// How the program fails: one exception type with a location, an exit code and a sentence for the user.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>

namespace dm {

/// Exit codes of the `densemamba` executable; scripts rely on them.
enum class ExitCode : int {
  ok = 0,
  failure = 1,     ///< The run cannot go on as it was asked for; a relaunch would fail again.
  usage = 2,       ///< The command line or a configuration file is wrong.
  retryable = 75,  ///< A peer, a device or a disk failed; relaunch with `--resume auto` (EX_TEMPFAIL of sysexits.h).
};

/// A failure on its way to `main`, the only place that catches it. `what()` is one line for the user:
/// what failed and what to change.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, ExitCode code = ExitCode::failure,
                 std::source_location where = std::source_location::current())
      : std::runtime_error(message), code_(code), where_(where) {}

  ExitCode code() const { return code_; }
  const std::source_location& where() const { return where_; }

 private:
  ExitCode code_;
  std::source_location where_;
};

/// Throws `Error`. Compose `message` with fmt::format at the caller (this header reaches CUDA sources,
/// so it includes no third-party header).
[[noreturn]] inline void fail(const std::string& message, ExitCode code = ExitCode::failure,
                              std::source_location where = std::source_location::current()) {
  throw Error(message, code, where);
}

/// Throws `Error` unless `condition` holds. For messages that must be formatted write `if (!ok) fail(fmt::format(...))`,
/// so that the good path formats nothing.
constexpr void require(bool condition, std::string_view message,
                       std::source_location where = std::source_location::current()) {
  if (!condition) [[unlikely]]
    throw Error(std::string(message), ExitCode::failure, where);
}

}  // namespace dm
