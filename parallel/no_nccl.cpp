// The twin of parallel/cuda/nccl_communicator.cpp in a build without CUDA.
#include "parallel/nccl_communicator.h"

namespace dm {

std::unique_ptr<Communicator> make_nccl_communicator(Communicator&, Device, std::string, CollectiveObserver*, double) {
  fail("this build has no CUDA backend; use --run.device cpu, or build where nvcc is found", ExitCode::usage);
}

}  // namespace dm
