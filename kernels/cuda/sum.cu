// The sum of a tensor on the GPU: a reduction in double.
#include "kernels/sum.h"

#include "kernels/cuda/reduction.cuh"

namespace dm::cuda {
namespace {

struct Widen {
  __device__ double operator()(float x) const { return static_cast<double>(x); }
};

}  // namespace

void add_sum(Stream& stream, const Tensor& x, const Tensor& out) {
  launch_reduction(stream, x, out, Widen{});
}

}  // namespace dm::cuda
