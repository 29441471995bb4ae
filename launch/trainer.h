// A training run from its options to its last checkpoint.
#pragma once

#include <cstdint>
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
  /// Seconds since the last line on the screen, by kind.
  struct Interval {
    double begin = 0, communication = 0, data_wait = 0, compute = 0;
    std::int64_t steps = 0;
  };

  void open_data();
  void open_run_directory();
  void choose_start();
  void make_model();
  void load(const Checkpoint& checkpoint);
  void print_banner() const;

  StepResult train_step(double lr);
  void at_point(std::string_view point);
  void count_skipped_update(const StepResult& result);
  void report_step(const StepResult& result, double lr, double seconds);
  void print_step(const StepResult& result, double lr);
  void validate();
  double unigram_loss(const Sequences& sequences);
  /// False when it failed and the run goes on without it; throws when it has failed too often in a row.
  bool save();
  void remove_old_checkpoints();
  bool stop_requested();
  void report_end();
  Interval interval_now() const;

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

  std::int64_t step_ = 0;
  std::int64_t saved_step_ = -1;
  std::int64_t failed_saves_ = 0;
  std::optional<double> unigram_loss_;
  double started_ = 0;
  std::int64_t first_step_ = 0;
  Interval interval_;
};

}  // namespace dm
