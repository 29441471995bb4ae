// A healthy job that the watchdog leaves alone, and the sick ones (disabled here: watchdog_faults_test.py runs each and
// looks at how the job ends).
#include <signal.h>
#include <unistd.h>
#include <chrono>
#include <cstdlib>
#include <thread>

#include <gtest/gtest.h>
#include <mpi.h>

#include "parallel/communicator.h"
#include "parallel/watchdog.h"
#include "runtime/host.h"

namespace dm {
namespace {

/// One rank as the trainer sets it up. The board lies in WATCHDOG_DIR.
struct Job {
  explicit Job(double timeout_seconds) {
    const char* directory = std::getenv("WATCHDOG_DIR");
    // Without the script: a name that all ranks of this job, and no other job, derive.
    const std::string path = directory ? std::string(directory) + "/board"
                                       : ::testing::TempDir() + "watchdog_board_" + std::to_string(::getppid());
    ::signal(SIGTERM, [](int) {});  // the trainer catches it to save; mpirun sends it when a rank has died
    const Log log(world->rank() == 0, rank_name(world->rank(), host_name()));
    watchdog.start(*world, path, timeout_seconds, log, &MpiEnvironment::abort);
    if (!directory && world->rank() == 0) std::filesystem::remove(path);
  }

  void work(int steps) {
    for (int step = 1; step <= steps; ++step) {
      watchdog.set_step(step);
      watchdog.set_phase("forward");
      tensor_group->all_reduce(stream, tensor);
      watchdog.set_phase("reduce");
      world->all_reduce(stream, tensor);
    }
  }
  void sleep_for_ever() {
    for (;;) std::this_thread::sleep_for(std::chrono::seconds(1));
  }

  Watchdog watchdog;
  std::unique_ptr<Communicator> world = make_mpi_communicator(&watchdog);
  std::unique_ptr<Communicator> tensor_group = world->split(world->rank() / 2, world->rank(), "tensor");
  Stream stream{Device::cpu()};
  float values[4] = {1, 2, 3, 4};
  Tensor tensor = Tensor::of(values, {4});
};

TEST(Watchdog, LeavesAHealthyJobAlone) {
  Job job(20);
  job.work(50);
  if (job.world->rank() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(200));
  job.world->barrier(job.stream);
}

TEST(Watchdog, RanksMayEndAtDifferentTimes) {
  Job job(20);
  job.work(3);
  std::this_thread::sleep_for(std::chrono::milliseconds(150 * job.world->rank()));
}

TEST(WatchdogFaults, DISABLED_Hang) {
  Job job(1);
  job.work(3);
  job.watchdog.set_phase("backward");
  if (job.world->rank() == 1) job.sleep_for_ever();
  job.work(1);
}

TEST(WatchdogFaults, DISABLED_Kill) {
  Job job(60);
  job.work(3);
  if (job.world->rank() == 1) ::raise(SIGKILL);
  job.work(1);
}

TEST(WatchdogFaults, DISABLED_KillWhileOthersCompute) {
  Job job(60);
  job.work(3);
  if (job.world->rank() == 1) ::raise(SIGKILL);
  job.sleep_for_ever();
}

TEST(WatchdogFaults, DISABLED_Stop) {
  Job job(1);
  job.work(3);
  if (job.world->rank() == 1) ::raise(SIGSTOP);
  job.work(1);
}

TEST(WatchdogFaults, DISABLED_OtherOrder) {
  Job job(1);
  job.work(3);
  if (job.world->rank() == 1) job.world->barrier(job.stream);
  job.world->all_reduce(job.stream, job.tensor);
}

TEST(WatchdogFaults, DISABLED_Error) {
  Job job(60);
  job.work(3);
  if (job.world->rank() == 1 && job.watchdog.claim_end()) {
    Log(false, "main").warn("rank 1 found something wrong");
    MpiEnvironment::abort(static_cast<int>(ExitCode::failure));
  }
  job.work(1);
}

TEST(WatchdogFaults, DISABLED_ErrorThatHangs) {
  Job job(60);
  job.work(3);
  if (job.world->rank() == 1 && job.watchdog.claim_end()) {
    Log(false, "main").warn("rank 1 found something wrong");
    job.sleep_for_ever();
  }
  job.work(1);
}

TEST(WatchdogFaults, DISABLED_EarlyEnd) {
  {
    Job job(1);
    job.work(3);
    if (job.world->rank() != 1) job.work(1);
  }
  std::this_thread::sleep_for(std::chrono::seconds(60));
}

}  // namespace
}  // namespace dm
