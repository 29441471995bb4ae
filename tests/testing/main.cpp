// The main of every GoogleTest program: brings MPI up when the test runs under mpirun, prints only rank 0's successes, and
// skips what was asked for on GPUs that are not there.
#include <cstdlib>
#include <string_view>

#include <gtest/gtest.h>
#include <mpi.h>

#include "runtime/cuda/cuda.h"
#include "tests/testing/device.h"

namespace dm {
namespace {

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE of tests/CMakeLists.txt

bool is_for_gpus() {
  const char* device = std::getenv("DM_TEST_DEVICE");
  return device != nullptr && std::string_view(device) == "cuda";
}

/// A number that mpirun gives its processes; `otherwise` without it.
int number_of_mpirun(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}
int mpi_rank() {
  return number_of_mpirun("OMPI_COMM_WORLD_RANK", 0);
}
int mpi_size() {
  return number_of_mpirun("OMPI_COMM_WORLD_SIZE", 1);
}

/// Rank 0 alone prints what went well.
void print_failures_only() {
  class FailuresOnly : public ::testing::EmptyTestEventListener {
    void OnTestPartResult(const ::testing::TestPartResult& result) override {
      if (result.failed()) std::fprintf(stderr, "%s:%d %s\n", result.file_name(), result.line_number(), result.message());
    }
  };
  auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
  delete listeners.Release(listeners.default_result_printer());
  listeners.Append(new FailuresOnly);
}

int run_under_mpirun(int* argc, char*** argv) {
  int provided = 0;
  MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &provided);
  if (mpi_rank() != 0) print_failures_only();
  int failed = RUN_ALL_TESTS();
  MPI_Allreduce(MPI_IN_PLACE, &failed, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  MPI_Finalize();
  return failed;
}

}  // namespace

Device test_device() {
  return is_for_gpus() ? Device::cuda(mpi_rank()) : Device::cpu();
}

}  // namespace dm

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const int gpus = dm::cuda::device_count();
  if (dm::is_for_gpus() && gpus < dm::mpi_size()) {
    if (dm::mpi_rank() == 0) std::printf("skipped: needs a GPU for each of %d ranks, and sees %d\n", dm::mpi_size(), gpus);
    return dm::kSkipped;
  }
  const bool under_mpirun = std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr;
  return under_mpirun ? dm::run_under_mpirun(&argc, &argv) : RUN_ALL_TESTS();
}
