// The watching thread: a look every 50 ms, one report a job.
#include "parallel/watchdog.h"

#include <unistd.h>
#include <algorithm>

#include <fmt/format.h>

#include "runtime/host.h"
#include "runtime/trace.h"

namespace dm {
namespace {

/// When a process of the job dies, mpirun kills the others about a second later; until then somebody must have spoken.
constexpr std::chrono::milliseconds kPeriod{50};
/// How long a rank that has claimed the end of the job may take for it.
constexpr std::chrono::milliseconds kGrace{5000};
/// A watching thread that has not run for so long belongs to a stopped process or to a host that is cut off.
constexpr double kSilenceSeconds = 10;

/// What a round of the watching thread counts for at most.
constexpr double kLongestRound = 1;

constexpr auto kRelaxed = std::memory_order_relaxed;

}  // namespace

Watchdog::Watchdog() : log_(false, "") {}

Watchdog::~Watchdog() {
  slot_->state.store(RankState::ended);
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Watchdog::start(Communicator& world, const std::filesystem::path& board, double timeout_seconds, const Log& log,
                     std::function<void(int)> end_job) {
  require(!is_watching(), "a watchdog starts once");
  if (timeout_seconds <= 0) return;
  Stream stream(Device::cpu());
  rank_ = world.rank();
  timeout_seconds_ = timeout_seconds;
  log_ = log;
  end_job_ = std::move(end_job);

  if (rank_ == 0) board_ = StatusBoard::create(board, world.size());
  world.barrier(stream);
  if (rank_ != 0) board_ = StatusBoard::open(board, world.size());
  StatusSlot& slot = board_.slot(rank_);
  slot.pid = ::getpid();
  slot.host.store(host_name());
  slot.sequence = own_.sequence.load();
  slot.step = own_.step.load();
  slot.phase.store(own_.phase.load());
  slot.op.store(own_.op.load());
  slot.group.store(own_.group.load());
  slot.heartbeat_ms = wall_clock_ms();
  slot.state = RankState::running;
  slot_ = &slot;
  world.barrier(stream);

  const std::vector<RankStatus> ranks = board_.read();
  for (int rank = 0; rank < world.size(); ++rank) {
    const RankStatus& other = ranks[static_cast<std::size_t>(rank)];
    // A process that cannot be seen right after the barrier lives in another process namespace: only timeouts find it.
    if (rank != rank_ && other.host == host_name() && !other.dead) neighbours_.emplace_back(rank, other.pid);
  }
  thread_ = std::thread([this] { watch(); });
}

void Watchdog::entered(std::string_view op, std::string_view group, std::int64_t bytes) {
  slot_->op.store(op);
  slot_->group.store(group);
  slot_->bytes.store(bytes, kRelaxed);
  slot_->sequence.store(slot_->sequence.load(kRelaxed) + 1, kRelaxed);
  slot_->inside.store(true, kRelaxed);
}

void Watchdog::left() {
  slot_->inside.store(false, kRelaxed);
}

bool Watchdog::sleep(std::chrono::milliseconds duration) {
  std::unique_lock lock(mutex_);
  return !wake_.wait_for(lock, duration, [this] { return stopping_; });
}

double Watchdog::update_times() {
  const std::int64_t sequence = slot_->sequence.load(kRelaxed);
  const bool inside = slot_->inside.load(kRelaxed);
  const bool same = sequence == seen_sequence_ && inside == seen_inside_;
  const double now = now_seconds();
  // Time in which this thread did not run (a suspended job, a sleeping machine) is nobody's delay.
  seen_seconds_ = same ? seen_seconds_ + std::min(now - seen_at_, kLongestRound) : 0;
  seen_sequence_ = sequence;
  seen_inside_ = inside;
  seen_at_ = now;
  slot_->unchanged_ms.store(static_cast<std::int64_t>(seen_seconds_ * 1e3), kRelaxed);
  slot_->heartbeat_ms.store(wall_clock_ms(), kRelaxed);
  return inside ? seen_seconds_ : 0;
}

std::string Watchdog::find_trouble(double seconds_inside) const {
  for (const auto& [rank, pid] : neighbours_) {
    if (board_.slot(rank).state.load() == RankState::running && is_gone(pid)) {
      return fmt::format("{} is dead", rank_name(rank, host_name()));
    }
  }
  if (seconds_inside <= timeout_seconds_) return "";
  return fmt::format("waited {:.1f} s in {} of group {}", seconds_inside, slot_->op.load(), slot_->group.load());
}

void Watchdog::report(const std::string& trouble) const {
  const std::vector<RankStatus> ranks = board_.read();
  log_.warn(fmt::format("watchdog: {}\n{}culprit: {}\nthe job ends with exit code {}; relaunch with --resume auto", trouble,
                        format_board(ranks), name_culprits(ranks, std::min(kSilenceSeconds, timeout_seconds_)),
                        static_cast<int>(ExitCode::retryable)));
}

void Watchdog::watch() {
  do {
    const std::string trouble = find_trouble(update_times());
    if (board_.is_claimed()) {
      if (!sleep(kGrace)) return;
      break;
    }
    if (!trouble.empty() && board_.claim(rank_)) {
      report(trouble);
      break;
    }
  } while (sleep(kPeriod));
  const std::lock_guard lock(mutex_);
  if (!stopping_) end_job_(static_cast<int>(ExitCode::retryable));
}

}  // namespace dm
