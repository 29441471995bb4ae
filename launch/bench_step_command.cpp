// `densemamba bench-step`: times whole optimizer steps on random tokens and prints one JSON line.
#include <algorithm>
#include <iostream>
#include <numeric>
#include <optional>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "kernels/matmul.h"
#include "launch/build_info.h"
#include "launch/commands.h"
#include "launch/device_choice.h"
#include "launch/training_data.h"
#include "runtime/power.h"

namespace dm {
namespace {

/// Dense bf16 rate of H100 and H200 SXM in FLOP/s (NVIDIA H100 datasheet): what MFU is a share of.
constexpr double kPeak = 989.4e12;

struct BenchOptions {
  std::int64_t warmup = 5;
  std::int64_t repeats = 20;
};

void bench(TrainOptions& options, const BenchOptions& bench_options) {
  std::unique_ptr<Communicator> world = make_mpi_communicator();
  const Device device = choose_device(options.run.device, *world);
  allow_nvlink_multicast(options.parallel.nvlink_multicast);
  Grid grid = Grid::make(std::move(world), static_cast<int>(options.parallel.tensor), device);
  if (options.model.vocabulary == 0) options.model.vocabulary = DataSources::kSyntheticVocabulary;
  options.model.resolve();
  MemoryReport memory;
  TrainingStep training(options, grid, device, nullptr, memory);
  training.store().initialize(training.stream(), static_cast<std::uint64_t>(options.run.seed));
  std::vector<Sequences> batches;
  for (std::int64_t step = 0; step < 4; ++step) batches.push_back(synthetic_step(options, grid, step * options.train.batch));

  // The device works on the next step while the host waits for the last one, as in training: also during the last timed one.
  const std::int64_t steps = bench_options.warmup + bench_options.repeats;
  std::vector<double> milliseconds;
  double loss = 0, finished = 0;
  const PowerMeter power(device);
  std::optional<PowerSpan> timed;
  std::optional<PowerSpan::Use> use;
  for (std::int64_t started = 0, done = 0; done < steps + training.ahead(); ++done) {
    for (; started < steps + training.ahead() && started <= done + training.ahead(); ++started) {
      training.start(batches[static_cast<std::size_t>(started) % batches.size()], 1e-4, [](std::string_view) {});
    }
    loss = training.finish().loss;
    const double now = now_seconds();
    if (done >= bench_options.warmup && done < steps) {
      milliseconds.push_back(1e3 * (now - finished));
      timed->sample();
    }
    if (done + 1 == bench_options.warmup) timed.emplace(power);
    if (done + 1 == steps) use = timed->use();
    finished = now;
  }
  if (grid.world->rank() != 0) return;
  std::sort(milliseconds.begin(), milliseconds.end());
  const double median = milliseconds[milliseconds.size() / 2];
  const double tokens = static_cast<double>(options.train.batch * options.train.sequence), rate = 1e3 * tokens / median;
  const bool gpu = device.kind == DeviceKind::cuda;
  nlohmann::json line = {{"device", gpu ? cuda::describe_device(device.index) : "cpu"},
                         {"build", build_description()},
                         {"grid", grid.describe()},
                         {"dtype", name_of(training.store().compute_dtype())},
                         {"layers", options.model.layers},
                         {"d_model", options.model.d_model},
                         {"dense_depth", options.model.dense_depth},
                         {"vocabulary", options.model.vocabulary},
                         {"batch", options.train.batch},
                         {"micro_batch", micro_batch_of(options.train, grid.data->size())},
                         {"sequence", options.train.sequence},
                         {"recompute", options.train.recompute},
                         {"loss_chunk", options.train.loss_chunk},
                         {"parameters", options.model.parameters()},
                         {"steps", bench_options.repeats},
                         {"ms", median},
                         {"ms_min", milliseconds.front()},
                         {"ms_max", milliseconds.back()},
                         {"tokens_per_second", rate},
                         {"memory_gib", static_cast<double>(memory.total()) / (1 << 30)},
                         {"loss", loss}};
  if (gpu) line["mfu"] = rate * options.model.training_flops_per_token() / (kPeak * grid.world->size());
  if (use) {  // of this rank's GPU
    line["watts"] = 1e3 * use->joules / std::accumulate(milliseconds.begin(), milliseconds.end(), 0.0);
    line["clock_mhz"] = use->clock_mhz;
  }
  std::cout << line.dump() << std::endl;
}

}  // namespace

int bench_step_command(int argc, char** argv) {
  TrainOptions options;
  BenchOptions bench_options;
  OptionTable table = make_train_table(options, "bench-step", "Times whole steps on random tokens; prints one JSON line.");
  table.add("batch", options.train.batch, "The same as --train.batch.", {.min = 1});
  table.add("seq", options.train.sequence, "The same as --train.sequence.", {.min = 1});
  table.add("warmup", bench_options.warmup, "Steps before the clock starts.", {.min = 1});
  table.add("repeats", bench_options.repeats, "Timed steps; the median is reported.", {.min = 1});
  if (table.parse(argc, argv, std::cout) != ParseOutcome::run) return 0;
  use_one_blas_thread();
  const MpiEnvironment mpi(nullptr, nullptr);
  try {
    bench(options, bench_options);
    return 0;
  } catch (...) {
    MpiEnvironment::abort(report_current_exception());
  }
}

}  // namespace dm
