// `densemamba train`: MPI up, grid, trainer; and the end of the whole job when any rank fails.
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string_view>
#include <thread>

#include <fmt/format.h>

#include "kernels/matmul.h"
#include "launch/commands.h"
#include "launch/trainer.h"
#include "runtime/host.h"

namespace dm {
namespace {

/// True in the process that speaks for its job, before MPI is up.
bool is_first_process() {
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  return rank == nullptr || std::string_view(rank) == "0";
}

void train(TrainOptions& options, const OptionTable& table) {
  // In this order: the watchdog is told of the end, also by an exception, before the communicators go.
  Watchdog watchdog;
  std::unique_ptr<Communicator> world = make_mpi_communicator(&watchdog);
  const Log log(world->rank() == 0,
                fmt::format("densemamba: rank {} of {} on {}", world->rank(), world->size(), host_name()));
  const StopSignal stop;
  FaultInjector faults(options.run.inject, world->rank());
  Grid grid = Grid::make(std::move(world), static_cast<int>(options.parallel.tensor));
  Trainer trainer({.options = options,
                   .table = table,
                   .grid = grid,
                   .watchdog = watchdog,
                   .stop = stop,
                   .faults = faults,
                   .log = log,
                   .end_job = MpiEnvironment::abort});
  trainer.run();
}

}  // namespace

int train_command(int argc, char** argv) {
  TrainOptions options;
  OptionTable table = make_train_table(options);
  std::ofstream silence;
  if (table.parse(argc, argv, is_first_process() ? std::cout : silence) != ParseOutcome::run) return 0;
  if (options.run.device == "cuda") fail("this build has no CUDA backend; use --run.device cpu or auto", ExitCode::usage);
  use_one_blas_thread();  // ranks are the parallelism on CPUs

  const MpiEnvironment mpi(nullptr, nullptr);
  try {
    train(options, table);
    return 0;
  } catch (...) {
    // What all ranks found is said once: the first rank ends the job while the others wait for their turn.
    if (!is_first_process()) std::this_thread::sleep_for(std::chrono::milliseconds(500));
    MpiEnvironment::abort(report_current_exception());
  }
}

}  // namespace dm
