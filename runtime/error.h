// How the program fails: one exception type with a location, an exit code and a sentence for the user.
#pragma once

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

/// Where a failure was noticed: the caller's place, as a default argument. (std::source_location needs Clang 16.)
struct SourceLocation {
  const char* file = "";
  int line = 0;

  static constexpr SourceLocation current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

/// A failure on its way to `main`, the only place that catches it. `what()` is one line for the user:
/// what failed and what to change.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, ExitCode code = ExitCode::failure,
                 SourceLocation where = SourceLocation::current())
      : std::runtime_error(message), code_(code), where_(where) {}

  ExitCode code() const { return code_; }
  const SourceLocation& where() const { return where_; }

 private:
  ExitCode code_;
  SourceLocation where_;
};

/// Throws `Error`. Compose `message` with fmt::format at the caller (this header reaches CUDA sources,
/// so it includes no third-party header).
[[noreturn]] inline void fail(const std::string& message, ExitCode code = ExitCode::failure,
                              SourceLocation where = SourceLocation::current()) {
  throw Error(message, code, where);
}

/// Throws `Error` unless `condition` holds. For messages that must be formatted write `if (!ok) fail(fmt::format(...))`,
/// so that the good path formats nothing.
constexpr void require(bool condition, std::string_view message, SourceLocation where = SourceLocation::current()) {
  if (!condition) [[unlikely]]
    throw Error(std::string(message), ExitCode::failure, where);
}

}  // namespace dm
