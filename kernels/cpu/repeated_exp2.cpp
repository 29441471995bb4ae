// The C library's exponential, over and over.
#include "kernels/repeated_exp2.h"

#include <cmath>

namespace dm::cpu {

void repeated_exp2(Stream&, const Tensor& x, std::int64_t rounds) {
  float* values = x.as<float>();
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    for (std::int64_t round = 0; round < rounds; ++round) values[i] = std::exp2(-values[i]);
  }
}

}  // namespace dm::cpu
