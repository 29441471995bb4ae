// The board's shared mapping, and the words that a stalled job ends with.
#include "parallel/status_board.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>
#include <new>
#include <utility>

#include <fmt/format.h>

#include "runtime/error.h"
#include "runtime/host.h"
#include "runtime/log.h"

namespace dm {
namespace {

struct alignas(64) Header {
  std::atomic<std::int32_t> claimed_by = 0;  // rank + 1, 0: nobody
};

static_assert(std::atomic<std::int64_t>::is_always_lock_free && std::atomic<RankState>::is_always_lock_free &&
                  std::atomic<bool>::is_always_lock_free,
              "processes share these through a mapping");

std::size_t board_bytes(int ranks) {
  return sizeof(Header) + static_cast<std::size_t>(ranks) * sizeof(StatusSlot);
}

[[noreturn]] void fail_with_errno(std::string_view what, const std::filesystem::path& path, int error) {
  fail(fmt::format("cannot {} the watchdog's board {}: {}", what, path.string(), std::strerror(error)), ExitCode::retryable);
}

std::string describe_call(const RankStatus& rank) {
  if (rank.sequence == 0) return "no collective";
  return fmt::format("collective {} ({} of group {}, {} bytes)", rank.sequence, rank.op, rank.group, rank.bytes);
}

std::string describe_place(const RankStatus& rank) {
  return fmt::format("step {}{}{}", rank.step, rank.phase.empty() ? "" : ", phase ", rank.phase);
}

std::string state_of(const RankStatus& rank) {
  if (rank.state == RankState::absent) return "absent";
  if (rank.state == RankState::ended) return "ended";
  if (rank.dead) return rank.inside ? "dead, was inside" : "dead, was outside";
  return fmt::format("{} for {:.1f} s", rank.inside ? "inside" : "outside", rank.unchanged_seconds);
}

using Ranks = std::vector<RankStatus>;

/// `sentence(rank, status)` for every rank that `chosen` picks, joined.
template <class Chosen, class Sentence>
std::string each(const Ranks& ranks, const Chosen& chosen, const Sentence& sentence) {
  std::string text;
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    if (!chosen(ranks[r])) continue;
    text +=
        fmt::format("{}{} {}", text.empty() ? "" : "; ", rank_name(static_cast<int>(r), ranks[r].host), sentence(ranks[r]));
  }
  return text;
}

/// The call after the last one of `late` in which somebody waits; null when nobody is ahead of it.
const RankStatus* next_call(const Ranks& ranks, const RankStatus& late) {
  const RankStatus* next = nullptr;
  for (const RankStatus& rank : ranks) {
    if (rank.sequence > late.sequence && (!next || rank.sequence < next->sequence)) next = &rank;
  }
  return next;
}

std::string name_missing(const Ranks& ranks) {
  const auto where = [](const RankStatus& r) {
    return fmt::format("it left {} {:.1f} s ago, {}", describe_call(r), r.unchanged_seconds, describe_place(r));
  };
  const std::string text = each(
      ranks, [&](const RankStatus& r) { return !r.inside && next_call(ranks, r); },
      [&](const RankStatus& r) {
        return fmt::format("never entered {}: {}", describe_call(*next_call(ranks, r)), where(r));
      });
  if (!text.empty()) return text;
  return each(
      ranks, [](const RankStatus& r) { return !r.inside; },
      [&](const RankStatus& r) { return "is in no collective: " + where(r); });
}

/// All ranks are inside: those whose call is not that of the most ranks, or that are behind.
std::string name_disagreeing(const Ranks& ranks) {
  std::map<std::string, int> votes;
  for (const RankStatus& rank : ranks) ++votes[describe_call(rank)];
  const auto most =
      std::max_element(votes.begin(), votes.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  if (votes.size() == 1) {
    return fmt::format("every rank is inside {}: a rank skipped a call before, or the transport between the hosts hangs",
                       most->first);
  }
  if (most->second * 2 <= static_cast<int>(ranks.size())) {
    const std::string text = each(
        ranks, [](const RankStatus&) { return true; },
        [](const RankStatus& r) { return fmt::format("is inside {}", describe_call(r)); });
    return "ranks call collectives in different orders: " + text;
  }
  return each(
      ranks, [&](const RankStatus& r) { return describe_call(r) != most->first; },
      [&](const RankStatus& r) {
        return fmt::format("is inside {} while others are inside {}", describe_call(r), most->first);
      });
}

}  // namespace

StatusBoard StatusBoard::create(const std::filesystem::path& path, int ranks) {
  // A new file, not the old one emptied: processes of an earlier job may still have that one mapped.
  std::error_code ignored;
  std::filesystem::remove(path, ignored);
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor < 0) fail_with_errno("create", path, errno);
  // Taken now, because a store into a mapped page that the disk has no room for is a fatal signal.
  const int error = ::posix_fallocate(descriptor, 0, static_cast<off_t>(board_bytes(ranks)));
  if (error != 0) {
    ::close(descriptor);
    fail_with_errno("allocate", path, error);
  }
  StatusBoard board(descriptor, path, ranks);
  new (board.memory_) Header;
  for (int rank = 0; rank < ranks; ++rank) new (&board.slot(rank)) StatusSlot;
  return board;
}

StatusBoard StatusBoard::open(const std::filesystem::path& path, int ranks) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor < 0) fail_with_errno("open", path, errno);
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || static_cast<std::size_t>(status.st_size) != board_bytes(ranks)) {
    ::close(descriptor);
    fail(
        fmt::format("the watchdog's board {} is not that of a job of {} ranks; do all ranks run the same build in the same "
                    "run directory?",
                    path.string(), ranks));
  }
  return StatusBoard(descriptor, path, ranks);
}

StatusBoard::StatusBoard(int descriptor, const std::filesystem::path& path, int ranks)
    : bytes_(board_bytes(ranks)), ranks_(ranks) {
  void* memory = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  const int error = errno;
  ::close(descriptor);
  if (memory == MAP_FAILED) fail_with_errno("map", path, error);
  memory_ = memory;
}

StatusBoard::~StatusBoard() {
  if (memory_) ::munmap(memory_, bytes_);
}

void StatusBoard::swap(StatusBoard& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(bytes_, other.bytes_);
  std::swap(ranks_, other.ranks_);
}

StatusSlot& StatusBoard::slot(int rank) const {
  require(rank >= 0 && rank < ranks_, "a rank outside the board");
  return reinterpret_cast<StatusSlot*>(static_cast<std::byte*>(memory_) + sizeof(Header))[rank];
}

bool StatusBoard::claim(int rank) const {
  std::int32_t nobody = 0;
  return static_cast<Header*>(memory_)->claimed_by.compare_exchange_strong(nobody, rank + 1);
}

bool StatusBoard::is_claimed() const {
  return static_cast<Header*>(memory_)->claimed_by.load(std::memory_order_relaxed) != 0;
}

std::vector<RankStatus> StatusBoard::read() const {
  const std::string here = host_name();
  const std::int64_t now = wall_clock_ms();
  std::vector<RankStatus> rows;
  for (int rank = 0; rank < ranks_; ++rank) {
    const StatusSlot& from = slot(rank);
    RankStatus& to = rows.emplace_back();
    to.state = from.state;
    to.host = from.host.load();
    to.pid = from.pid;
    to.dead = to.state == RankState::running && to.host == here && is_gone(to.pid);
    to.op = from.op.load();
    to.group = from.group.load();
    to.sequence = from.sequence;
    to.bytes = from.bytes;
    to.inside = from.inside;
    to.step = from.step;
    to.phase = from.phase.load();
    to.unchanged_seconds = static_cast<double>(from.unchanged_ms) * 1e-3;
    to.silent_seconds = static_cast<double>(std::max<std::int64_t>(0, now - from.heartbeat_ms)) * 1e-3;
  }
  return rows;
}

std::int64_t wall_clock_ms() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::milliseconds>(now).count();
}

bool is_gone(int pid) {
  return ::kill(pid, 0) != 0 && errno == ESRCH;
}

std::string name_culprits(const std::vector<RankStatus>& ranks, double silence_seconds) {
  require(!ranks.empty(), "a board without ranks");
  std::string text = each(
      ranks, [](const RankStatus& r) { return r.dead; },
      [](const RankStatus& r) {
        return fmt::format("died {} {}, {} (process {} is gone)", r.inside ? "inside" : "after", describe_call(r),
                           describe_place(r), r.pid);
      });
  if (!text.empty()) return text;
  text = each(
      ranks, [](const RankStatus& r) { return r.state != RankState::running; },
      [](const RankStatus& r) {
        return r.state == RankState::absent ? std::string("never started") : fmt::format("ended after {}", describe_call(r));
      });
  if (!text.empty()) return text;
  text = each(
      ranks, [&](const RankStatus& r) { return r.silent_seconds >= silence_seconds; },
      [](const RankStatus& r) {
        return fmt::format("gave no sign of life for {:.1f} s: stopped, swapped out or cut off (after {}, {})",
                           r.silent_seconds, describe_call(r), describe_place(r));
      });
  if (!text.empty()) return text;
  text = name_missing(ranks);
  return text.empty() ? name_disagreeing(ranks) : text;
}

std::string format_board(const std::vector<RankStatus>& ranks) {
  std::size_t host_width = 4;
  for (const RankStatus& rank : ranks) host_width = std::max(host_width, rank.host.size());
  std::string text = fmt::format("{:>5}  {:<{}}  {:>8}  {:>7}  {:<10}  {:>10}  {:<14}  {:<8}  {:>12}  {}\n", "rank", "host",
                                 host_width, "pid", "step", "phase", "collective", "op", "group", "bytes", "state");
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    const RankStatus& rank = ranks[r];
    text += fmt::format("{:>5}  {:<{}}  {:>8}  {:>7}  {:<10}  {:>10}  {:<14}  {:<8}  {:>12}  {}\n", r, rank.host, host_width,
                        rank.pid, rank.step, rank.phase, rank.sequence, rank.op, rank.group, rank.bytes, state_of(rank));
  }
  return text;
}

}  // namespace dm
