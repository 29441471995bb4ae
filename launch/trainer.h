// A training run from its options to its last checkpoint.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "launch/metrics.h"
#include "launch/run_record.h"
#include "launch/stop_signal.h"
#include "launch/train_options.h"
#include "launch/training_data.h"
#include "launch/training_step.h"
#include "parallel/run_lock.h"
#include "parallel/watchdog.h"
#include "runtime/fault.h"
#include "runtime/log.h"

namespace dm {

/// What the trainer works with and does not own; all outlive it.
struct TrainerContext {
  TrainOptions& options;     ///< The model's derived values are filled in.
  const OptionTable& table;  ///< Bound to `options`.
  Grid& grid;
  Device device;
  Watchdog& watchdog;
  const StopSignal& stop;
  FaultInjector& faults;
  const Log& log;
  std::function<void(int exit_code)> end_job;  ///< Ends all ranks; the watchdog's last resort.
};

/// One rank's part of a run. Construction opens data and run directory, plans memory, makes or loads the model and prints
/// the banner; `run` trains. Both are collective over the grid's world. Failures that all ranks can know of are thrown on
/// all of them.
class Trainer {
 public:
  explicit Trainer(const TrainerContext& context);

  /// Trains until train.stop_at (or train.steps), or until a signal; saves a checkpoint at the end.
  void run();

 private:
  using StepResult = TrainingStep::Result;
  /// A step that the device has been given and whose result is not known yet.
  struct Unfinished {
    std::int64_t step;
    double lr;
    std::int64_t total_tokens;  ///< Of the data, this step's included.
  };
  /// Seconds since the last line on the screen, by kind.
  struct Interval {
    double begin = 0, communication = 0, data_wait = 0, compute = 0, device = 0;
    std::int64_t steps = 0;
  };

  void open_data();
  void open_run_directory();
  void choose_start();
  void make_model();
  void load(const Checkpoint& checkpoint);
  void print_banner() const;

  void start_step();
  /// Waits for the oldest unfinished step and reports it.
  void finish_step();
  void at_point(std::string_view point);
  void count_skipped_update(std::int64_t step, const StepResult& result);
  void report_step(const Unfinished& step, const StepResult& result);
  void print_step(const Unfinished& step, const StepResult& result);
  void validate();
  double unigram_loss(const Sequences& sequences);
  /// False when it failed and the run goes on without it; throws when it has failed too often in a row.
  bool save();
  void remove_old_checkpoints();
  bool stop_requested();
  void report_end();
  Interval interval_now(std::int64_t step) const;

  TrainOptions& options_;
  const OptionTable& table_;
  Grid& grid_;
  Device device_;
  Watchdog& watchdog_;
  const StopSignal& stop_;
  FaultInjector& faults_;
  const Log& log_;

  Trace trace_;
  MemoryReport memory_;
  std::filesystem::path checkpoints_;
  DataSources sources_;
  std::unique_ptr<RunLock> lock_;         // on rank 0
  std::optional<Checkpoint> checkpoint_;  // while starting, when there is one to resume from
  RunRecord record_;
  std::unique_ptr<Metrics> metrics_;
  std::optional<TrainingStep> training_;
  std::optional<TrainingData> data_;

  std::int64_t step_ = 0;  // the newest that was started
  std::deque<Unfinished> unfinished_;
  std::int64_t saved_step_ = -1;
  std::int64_t failed_saves_ = 0;
  std::optional<double> unigram_loss_;
  double started_ = 0;
  double finished_ = 0;        // when the newest result came
  double device_seconds_ = 0;  // of all steps
  std::int64_t first_step_ = 0;
  Interval interval_;
};

}  // namespace dm
