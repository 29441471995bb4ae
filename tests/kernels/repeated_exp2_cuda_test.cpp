// The repeated exponential on the GPU against the CPU: every element takes every round.
#include "kernels/repeated_exp2.h"

#include "tests/kernels/cuda_oracle.h"

namespace dm {
namespace {

class RepeatedExp2Cuda : public oracle::CudaTest {};

TEST_F(RepeatedExp2Cuda, AnySizeAndNumberOfRounds) {
  for (const std::int64_t n : {1, 1000, 3'000'001}) {
    for (const std::int64_t rounds : {0, 1, 3}) {
      oracle::Twin& x = random("x", {n});
      compare([&](Stream& stream, oracle::Side on) { repeated_exp2(stream, on(x), rounds); }, {x},
              std::to_string(n) + " elements, rounds " + std::to_string(rounds));
      clear();
    }
  }
}

}  // namespace
}  // namespace dm
