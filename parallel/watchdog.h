// Ends the whole job, naming who holds it up, when a rank has died or waits too long in a collective.
#pragma once

#include <atomic>
#include <condition_variable>
#include <filesystem>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/status_board.h"
#include "runtime/log.h"

namespace dm {

/// The observer of all communicators of a rank. It writes what the rank does on a board that all ranks share, and a thread
/// of its own watches. The job ends with ExitCode::retryable when
/// - this rank has been inside one collective for longer than the timeout, or
/// - a rank on this host is gone without having said that it ended (found within a tenth of a second), or
/// - another rank found either, or claimed the end (`claim_end`), and the job still runs five seconds later.
/// The first rank that finds something prints the table of all ranks and the culprits (`name_culprits`) to its log, once
/// for the job. A rank that hangs in its own computation is found by the ranks that wait for it; a job in which no rank
/// waits in a collective is not looked at.
///
/// entered(), left(), set_step() and set_phase() are a few plain stores, and called by one thread.
class Watchdog final : public CollectiveObserver {
 public:
  Watchdog();
  /// Says that this rank has ended, so that nobody calls it dead.
  ~Watchdog() override;
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// Begins to watch. Collective over `world`, whose observer this is; rank 0 creates the file `board` in a directory that
  /// all ranks see. `end_job` must end all ranks, from any thread, also when `world` is gone: MpiEnvironment::abort. A
  /// timeout of 0 watches nothing. Throws Error when the board cannot be made.
  void start(Communicator& world, const std::filesystem::path& board, double timeout_seconds, const Log& log,
             std::function<void(int exit_code)> end_job);

  bool is_watching() const { return board_.ranks() > 0; }
  /// While it watches: true for the first rank that asks, which tells the user why the job ends and ends it. False when
  /// another rank, or a watching thread, has begun to: then the job ends by itself.
  bool claim_end() const { return board_.claim(rank_); }

  void entered(std::string_view op, std::string_view group, std::int64_t bytes) override;
  void left() override;
  /// The optimizer step, and what the rank does in it ("forward", "save", at most 24 characters), for the report.
  void set_step(std::int64_t step) { slot_->step.store(step, std::memory_order_relaxed); }
  void set_phase(std::string_view phase) { slot_->phase.store(phase); }

 private:
  void watch();
  /// Writes the heartbeat and how long this rank has been where it is. Returns the seconds inside a collective.
  double update_times();
  std::string find_trouble(double seconds_inside) const;
  void report(const std::string& trouble) const;
  /// Waits; false when the watchdog is to stop.
  bool sleep(std::chrono::milliseconds duration);

  StatusSlot own_;            // until start()
  StatusSlot* slot_ = &own_;  // then this rank's on the board
  StatusBoard board_;
  int rank_ = 0;
  double timeout_seconds_ = 0;
  Log log_;
  std::function<void(int)> end_job_;
  std::vector<std::pair<int, int>> neighbours_;  // rank and process of the other ranks on this host
  std::int64_t seen_sequence_ = -1;              // the watching thread's: what it saw in its last round,
  bool seen_inside_ = false;
  double seen_at_ = 0;       // when that round was,
  double seen_seconds_ = 0;  // and for how long it has seen the same
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace dm
