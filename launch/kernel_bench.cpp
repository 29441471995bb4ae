// Medians over calls that go round several sets of inputs; on a GPU between events, behind work that keeps the queue full.
#include "launch/kernel_bench.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "kernels/repeated_exp2.h"
#include "runtime/copy.h"
#include "runtime/random.h"
#include "runtime/trace.h"

namespace dm {
namespace {

/// A prime, so that rows of a tensor are not repetitions of one another.
constexpr std::int64_t kNoise = 1'048'573;
/// Bytes that go round before a call sees the same tensors again: five times the second-level cache of an H100.
constexpr std::int64_t kCold = 256 << 20;
constexpr std::int64_t kFewestSets = 2, kMostSets = 16;

std::int64_t sets_for(std::int64_t bytes) {
  return std::clamp(kCold / std::max<std::int64_t>(bytes, 1) + 1, kFewestSets, kMostSets);
}

}  // namespace

Tensor KernelInputs::random(Shape shape, DType dtype) {
  const Tensor tensor = arena_.allocate(shape, dtype, "benchmark");
  const Tensor& noise = dtype == DType::bf16 ? rounded_noise_ : noise_;
  for (std::int64_t begin = 0; begin < tensor.numel() && !stream_.planning();) {
    const std::int64_t count = std::min(tensor.numel() - begin, kNoise - taken_);
    copy(stream_, noise.flat(taken_, count), tensor.flat(begin, count));
    begin += count;
    taken_ = (taken_ + count) % kNoise;
  }
  return tensor;
}

Tensor KernelInputs::filled(Shape shape, float value) {
  const Tensor tensor = arena_.allocate(shape, DType::f32, "benchmark");
  fill(stream_, tensor, value);
  return tensor;
}

Tensor KernelInputs::tokens(Shape shape, std::int64_t limit) {
  const Tensor tensor = arena_.allocate(shape, DType::i32, "benchmark");
  if (stream_.planning()) return tensor;
  const RandomStream stream(1, "tokens");
  std::vector<std::int32_t> values(static_cast<std::size_t>(shape.numel()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<std::int32_t>(stream.uniform(i) * static_cast<float>(limit));
  }
  copy(stream_, Tensor::of(values.data(), shape), tensor);
  stream_.synchronize();
  return tensor;
}

KernelBench::KernelBench(Device device, DType compute, std::int64_t repeats, double sustained_s)
    : device_(device),
      repeats_(repeats),
      sustained_s_(0),
      stream_(device),
      power_(device),
      noise_("noise", kNoise * 4, device, memory_),
      rounded_noise_("rounded noise", kNoise * 2, device, memory_),
      delay_("delay", std::int64_t{1} << 22, device, memory_) {
  const RandomStream random(1, "noise");
  std::vector<float> values(kNoise);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = random.normal(i);
  const Tensor noise = noise_.tensor({kNoise}, DType::f32);
  copy(stream_, Tensor::of(values.data(), {kNoise}), noise);
  convert(stream_, noise, rounded_noise_.tensor({kNoise}, DType::bf16));
  stream_.synchronize();
  const KernelCeilings measured{measure_copy(), measure_product(compute), measure_exponentials()};
  ceilings_ = measured;
  sustained_s_ = sustained_s;
}

double KernelBench::measure_copy() {
  const std::int64_t count = device_.kind == DeviceKind::cpu ? 8 << 20 : 128 << 20;
  const double bytes = 2.0 * 4.0 * static_cast<double>(count);
  const KernelTiming timing = time("copy", {.bytes = bytes}, [&](KernelInputs& inputs) -> Call {
    const Tensor from = inputs.random({count}, DType::f32), to = inputs.random({count}, DType::f32);
    return [=](Stream& stream) { copy(stream, from, to); };
  });
  return 1e3 * bytes / timing.ms;
}

double KernelBench::measure_product(DType compute) {
  const std::int64_t n = device_.kind == DeviceKind::cpu ? 1024 : compute == DType::f32 ? 4096 : 8192;
  const double flops = 2.0 * std::pow(static_cast<double>(n), 3);
  const KernelTiming timing = time("product", {.flops = flops}, [&](KernelInputs& inputs) -> Call {
    const Tensor a = inputs.random({n, n}, compute), b = inputs.random({n, n}, compute), c = inputs.random({n, n}, compute);
    return [=](Stream& stream) { matmul(stream, a, Transpose::no, b, Transpose::yes, c, Accumulate::overwrite); };
  });
  return 1e3 * flops / timing.ms;
}

double KernelBench::measure_exponentials() {
  if (device_.kind == DeviceKind::cpu) return 0;
  const std::int64_t count = 1 << 22, rounds = 1024;
  const double exponentials = static_cast<double>(count) * static_cast<double>(rounds);
  const KernelTiming timing = time("exponentials", {.exponentials = exponentials}, [&](KernelInputs& inputs) -> Call {
    const Tensor x = inputs.random({count}, DType::f32);
    return [=](Stream& stream) { repeated_exp2(stream, x, rounds); };
  });
  return 1e3 * exponentials / timing.ms;
}

KernelTiming KernelBench::time(const std::string& name, const KernelWork& work, const Prepare& prepare) {
  Arena plan(device_.kind);
  Stream paper(Device::plan(device_.kind));
  KernelInputs planned(paper, plan, {}, {});
  prepare(planned);
  const std::int64_t sets = sets_for(plan.peak());

  Arena arena(Buffer(name, sets * plan.peak(), device_, memory_));
  KernelInputs inputs(stream_, arena, noise_.tensor({kNoise}, DType::f32), rounded_noise_.tensor({kNoise}, DType::bf16));
  std::vector<Call> calls;
  for (std::int64_t set = 0; set < sets; ++set) calls.push_back(prepare(inputs));
  KernelTiming timing{.name = name, .work = work};
  std::vector<double> times = milliseconds(calls);
  if (sustained_s_ > 0) times = sustain(calls, *std::min_element(times.begin(), times.end()), timing);
  std::sort(times.begin(), times.end());
  timing.ms = times[times.size() / 2];
  timing.ms_min = times.front();
  timing.spread = (times[times.size() * 3 / 4] - times[times.size() / 4]) / timing.ms;
  const auto bound_by = [&](const char* bound, double amount, double rate) {
    const double share = rate > 0 ? 1e3 * amount / rate / timing.ms : 0;
    if (share > timing.share) timing.share = share, timing.bound = bound;
  };
  bound_by("memory", work.bytes, ceilings_.bytes);
  bound_by("matrix", work.flops, ceilings_.flops);
  bound_by("exp", work.exponentials, ceilings_.exponentials);
  return timing;
}

/// Means of twentieths of a second each. `once_ms` is about the time of a call.
std::vector<double> KernelBench::sustain(const std::vector<Call>& calls, double once_ms, KernelTiming& timing) {
  constexpr double kPart = 0.05;
  const auto part = std::max<std::int64_t>(1, static_cast<std::int64_t>(kPart * 1e3 / once_ms));
  std::vector<double> times;
  double ended = 0;
  std::optional<PowerSpan> timed;
  Event marks[2];  // the host is one part ahead
  const double deadline = now_seconds() + 1.5 * sustained_s_;
  for (std::int64_t parts = 0; times.empty() || ended < deadline; ++parts) {
    for (std::int64_t i = 0; i < part; ++i) calls[static_cast<std::size_t>(i) % calls.size()](stream_);
    marks[parts % 2].record(stream_);
    if (parts == 0) continue;
    marks[(parts - 1) % 2].synchronize();
    const double now = now_seconds();
    if (timed) {
      times.push_back(1e3 * (now - ended) / static_cast<double>(part));
      timed->sample();
    } else if (now > deadline - sustained_s_) {
      timed.emplace(power_);
    }
    ended = now;
  }
  if (const std::optional<PowerSpan::Use> use = timed->use()) {
    timing.joules = use->joules / static_cast<double>(std::ssize(times) * part);
    timing.clock_mhz = use->clock_mhz;
  }
  stream_.synchronize();
  return times;
}

std::vector<double> KernelBench::milliseconds(const std::vector<Call>& calls) {
  const std::int64_t sets = std::ssize(calls);
  const auto call = [&](std::int64_t i) { calls[static_cast<std::size_t>(i % sets)](stream_); };
  for (std::int64_t i = 0; i < std::max<std::int64_t>(sets, 3); ++i) call(i);
  stream_.synchronize();
  std::vector<double> times;
  if (device_.kind == DeviceKind::cpu) {
    for (std::int64_t i = 0; i < repeats_; ++i) {
      const double begin = now_seconds();
      call(i);
      times.push_back(1e3 * (now_seconds() - begin));
    }
    return times;
  }
  std::vector<Event> begin(static_cast<std::size_t>(repeats_)), end(static_cast<std::size_t>(repeats_));
  // About two milliseconds of other work: the host gets ahead, and events do not see its launch times.
  repeated_exp2(stream_, delay_.tensor({delay_.bytes() / 4}, DType::f32), 8192);
  for (std::size_t i = 0; i < begin.size(); ++i) {
    begin[i].record(stream_);
    call(static_cast<std::int64_t>(i));
    end[i].record(stream_);
  }
  stream_.synchronize();
  for (std::size_t i = 0; i < begin.size(); ++i) times.push_back(Event::elapsed_ms(begin[i], end[i]));
  return times;
}

}  // namespace dm
