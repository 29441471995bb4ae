// Times single ops on random data that no cache holds, beside the ceilings of the same device in the same run.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/arena.h"
#include "runtime/buffer.h"
#include "runtime/power.h"
#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

/// What one call moves and computes at least, by formula.
struct KernelWork {
  double bytes = 0;  ///< Read and written in device memory.
  double flops = 0;  ///< Of matrix products; other arithmetic is told by `exponentials` and the measurement.
  double exponentials = 0;
};

/// Reached per second in this run: copied bytes (read + written), floating-point operations of a large square product,
/// exponentials (0 on CPUs, which have no units of their own for them).
using KernelCeilings = KernelWork;

struct KernelTiming {
  std::string name = {};
  KernelWork work = {};
  double ms = 0;  ///< Median.
  double ms_min = 0;
  double spread = 0;       ///< Between the quartiles, as a part of the median.
  double share = 0;        ///< Time at the ceilings (the largest of the three) / median; 0 without ceilings.
  std::string bound = {};  ///< Which of the three: "memory", "matrix", "exp".
  double joules = 0;       ///< Of the whole GPU, a call; 0 where nothing counts them or calls were not sustained.
  double clock_mhz = 0;    ///< Mean; 0 likewise.
};

/// Gives a benchmark its tensors. Used twice: on paper, to count their bytes, and for real.
class KernelInputs {
 public:
  /// `noise` holds standard normal numbers as f32 and as bf16 (absent on paper).
  KernelInputs(Stream& stream, Arena& arena, const Tensor& noise, const Tensor& rounded_noise)
      : stream_(stream), arena_(arena), noise_(noise), rounded_noise_(rounded_noise) {}

  /// Standard normal numbers; f32 or bf16.
  Tensor random(Shape shape, DType dtype);
  /// f32, all `value`.
  Tensor filled(Shape shape, float value);
  /// i32, uniform in [0, limit).
  Tensor tokens(Shape shape, std::int64_t limit);

 private:
  Stream& stream_;
  Arena& arena_;
  Tensor noise_, rounded_noise_;
  std::int64_t taken_ = 0;
};

class KernelBench {
 public:
  using Call = std::function<void(Stream&)>;
  using Prepare = std::function<Call(KernelInputs&)>;

  /// Measures the ceilings: a copy, a product of `compute` matrices, a chain of exponentials. With `sustained_s` above 0, an
  /// op's time is that of calls without pause for so many seconds, after half as many: at the clock that the GPU can hold.
  KernelBench(Device device, DType compute, std::int64_t repeats, double sustained_s = 0);

  const KernelCeilings& ceilings() const { return ceilings_; }
  /// The median time of a call. `prepare` is called for as many sets of tensors as it takes to pass the caches by (at least
  /// two), and the calls go round them.
  KernelTiming time(const std::string& name, const KernelWork& work, const Prepare& prepare);

 private:
  double measure_copy();
  double measure_product(DType compute);
  double measure_exponentials();
  std::vector<double> milliseconds(const std::vector<Call>& calls);
  std::vector<double> sustain(const std::vector<Call>& calls, double once_ms, KernelTiming& timing);

  MemoryReport memory_;
  Device device_;
  std::int64_t repeats_;
  double sustained_s_;
  Stream stream_;
  PowerMeter power_;
  Buffer noise_, rounded_noise_, delay_;
  KernelCeilings ceilings_;
};

}  // namespace dm
