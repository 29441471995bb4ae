// Human output of one rank: plain lines, rank 0 speaks, and a closed stdout never stops training.
#pragma once

#include <string>
#include <string_view>

namespace dm {

/// "rank 3 (hostname)": how messages name a rank.
std::string rank_name(int rank, std::string_view host);

/// `info` prints on the speaking rank only, to stdout; `warn` prints on every rank, to stderr, with the rank's name in
/// front. A text of several lines stays together. Write errors (closed pipe, full disk) are ignored. Thread-safe: one write
/// call a text.
class Log {
 public:
  Log(bool speaks, std::string_view rank_name) : speaks_(speaks), rank_name_(rank_name) {}

  void info(std::string_view line) const;
  void warn(std::string_view line) const;
  bool speaks() const { return speaks_; }

 private:
  bool speaks_;
  std::string rank_name_;
};

}  // namespace dm
