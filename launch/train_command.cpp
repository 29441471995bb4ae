// `densemamba train`: MPI up, grid, trainer; and the end of the whole job when any rank fails.
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string_view>
#include <thread>

#include <fmt/format.h>

#include "kernels/matmul.h"
#include "launch/commands.h"
#include "launch/device_choice.h"
#include "launch/trainer.h"
#include "runtime/host.h"

namespace dm {
namespace {

/// True in the process that speaks for its job, before MPI is up.
bool is_first_process() {
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  return rank == nullptr || std::string_view(rank) == "0";
}

/// Before there is a board to claim the end of the job on, all ranks find the same fault: the first process says it and
/// ends the job while the others wait for that, and speak only when it does not come.
void let_first_process_speak() {
  if (!is_first_process()) std::this_thread::sleep_for(std::chrono::seconds(3));
}

/// Parses; false when there is nothing left to do.
bool parse(OptionTable& table, int argc, char** argv, const TrainOptions& options) {
  try {
    std::ofstream silence;
    if (table.parse(argc, argv, is_first_process() ? std::cout : silence) != ParseOutcome::run) return false;
    if (options.run.device == "cuda") cuda::require_device(0);
    return true;
  } catch (...) {
    let_first_process_speak();
    throw;
  }
}

void train(TrainOptions& options, const OptionTable& table, const StopSignal& stop, Watchdog& watchdog) {
  std::unique_ptr<Communicator> world = make_mpi_communicator(&watchdog);
  const Log log(world->rank() == 0,
                fmt::format("densemamba: rank {} of {} on {}", world->rank(), world->size(), host_name()));
  FaultInjector faults(options.run.inject, world->rank());
  const Device device = choose_device(options.run.device, *world);
  const std::string advice = advice_on_cores(device.kind, usable_cores(), machine_cores());
  if (log.speaks() && !advice.empty()) log.warn(advice);
  compute_dtype_of(options, device.kind);
  allow_nvlink_multicast(options.parallel.nvlink_multicast);
  Grid grid = Grid::make(std::move(world), static_cast<int>(options.parallel.tensor), device, &watchdog);
  Trainer trainer({.options = options,
                   .table = table,
                   .grid = grid,
                   .device = device,
                   .watchdog = watchdog,
                   .stop = stop,
                   .faults = faults,
                   .log = log,
                   .end_job = MpiEnvironment::abort});
  trainer.run();
}

/// In a catch block: one rank says what happened and ends the job.
[[noreturn]] void end_job(const Watchdog& watchdog) {
  if (!watchdog.is_watching()) {
    let_first_process_speak();
  } else if (!watchdog.claim_end()) {
    for (;;) ::pause();  // the rank that speaks ends this process too, and so does this one's watchdog when that fails
  }
  MpiEnvironment::abort(report_current_exception());
}

}  // namespace

int train_command(int argc, char** argv) {
  TrainOptions options;
  OptionTable table = make_train_table(options);
  if (!parse(table, argc, argv, options)) return static_cast<int>(ExitCode::ok);
  use_one_blas_thread();  // ranks are the parallelism on CPUs

  const StopSignal stop;  // first, so that a signal never finds the default handler
  const MpiEnvironment mpi(nullptr, nullptr);
  Watchdog watchdog;
  try {
    train(options, table, stop, watchdog);
    return static_cast<int>(ExitCode::ok);
  } catch (...) {
    end_job(watchdog);
  }
}

}  // namespace dm
