// What every rank last said about itself, in a file mapped by all ranks, and the report made from it.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace dm {

/// Up to `kBytes` characters that one thread writes while other processes read; longer texts are cut. A reader may see
/// parts of two texts when it reads during a write.
template <std::size_t kBytes>
class SharedText {
 public:
  void store(std::string_view text) {
    std::array<std::uint64_t, kBytes / 8> words{};
    text.copy(reinterpret_cast<char*>(words.data()), kBytes);
    for (std::size_t i = 0; i < words.size(); ++i) words_[i].store(words[i], std::memory_order_relaxed);
  }
  std::string load() const {
    std::array<std::uint64_t, kBytes / 8> words;
    for (std::size_t i = 0; i < words.size(); ++i) words[i] = words_[i].load(std::memory_order_relaxed);
    char text[kBytes];
    std::memcpy(text, words.data(), kBytes);
    return std::string(text, ::strnlen(text, kBytes));
  }

 private:
  static_assert(kBytes % 8 == 0);
  std::array<std::atomic<std::uint64_t>, kBytes / 8> words_{};
};

enum class RankState : std::int32_t {
  absent,   ///< Has not shown itself yet.
  running,  ///< Runs, or died without a word.
  ended,    ///< Said that it is done.
};

/// One rank's place on the board. The training thread writes what the rank does, its watchdog thread the two times; every
/// rank reads. Plain relaxed stores: a row read while it is written may mix two moments, which is good enough for a report
/// about ranks that stand still.
struct alignas(64) StatusSlot {
  std::atomic<RankState> state = RankState::absent;
  std::atomic<std::int32_t> pid = 0;
  SharedText<64> host;
  SharedText<24> op;
  SharedText<24> group;
  std::atomic<std::int64_t> sequence = 0;  ///< Collectives entered so far, over all communicators of the rank.
  std::atomic<std::int64_t> bytes = 0;
  std::atomic<bool> inside = false;  ///< Entered the last of them and has not left it.
  std::atomic<std::int64_t> step = 0;
  SharedText<24> phase;
  std::atomic<std::int64_t> unchanged_ms = 0;  ///< How long `sequence` and `inside` have been what they are.
  std::atomic<std::int64_t> heartbeat_ms = 0;  ///< Wall clock of the watchdog thread's last round.
};

/// A row of the board as plain values.
struct RankStatus {
  RankState state = RankState::absent;
  bool dead = false;  ///< Runs no more and never said that it ended. Known of ranks on this host only.
  std::string host;
  int pid = 0;
  std::string op;
  std::string group;
  std::int64_t sequence = 0;
  std::int64_t bytes = 0;
  bool inside = false;
  std::int64_t step = 0;
  std::string phase;
  double unchanged_seconds = 0;
  double silent_seconds = 0;  ///< Since the last heartbeat.
};

/// The slots of all ranks in one shared mapping (move-only). Ranks of one node see one another's stores at once; over a
/// shared file system other nodes' rows are as fresh as it makes them, which the heartbeat shows.
class StatusBoard {
 public:
  /// Replaces the file by a new one with `ranks` empty slots. Throws Error naming path and errno.
  static StatusBoard create(const std::filesystem::path& path, int ranks);
  /// Maps what another rank has created. Throws Error when the file does not have `ranks` slots.
  static StatusBoard open(const std::filesystem::path& path, int ranks);

  StatusBoard() = default;
  StatusBoard(StatusBoard&& other) noexcept { swap(other); }
  StatusBoard& operator=(StatusBoard&& other) noexcept {
    StatusBoard moved(std::move(other));
    swap(moved);
    return *this;
  }
  ~StatusBoard();

  int ranks() const { return ranks_; }
  StatusSlot& slot(int rank) const;
  std::vector<RankStatus> read() const;

  /// True for the first rank that asks: it speaks about the end of the job, or ends it by an error of its own.
  bool claim(int rank) const;
  bool is_claimed() const;

 private:
  StatusBoard(int descriptor, const std::filesystem::path& path, int ranks);
  void swap(StatusBoard& other) noexcept;

  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
  int ranks_ = 0;
};

/// The wall clock that heartbeats are compared by, in milliseconds.
std::int64_t wall_clock_ms();

/// True when `pid` of this host runs no more.
bool is_gone(int pid);

/// Who holds the others up, in one sentence for each rank or group of ranks: the dead, those that ended, those without a
/// sign of life for `silence_seconds`, those that never entered the collective in which the others wait, or those in
/// another collective than the rest; in this order, the first kind that exists.
std::string name_culprits(const std::vector<RankStatus>& ranks, double silence_seconds);

/// A table of all ranks, one line each: host, pid, step, phase, last collective and for how long.
std::string format_board(const std::vector<RankStatus>& ranks);

}  // namespace dm
