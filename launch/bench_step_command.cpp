// `densemamba bench-step`: times whole optimizer steps on random tokens and prints one JSON line.
#include <algorithm>
#include <iostream>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "kernels/matmul.h"
#include "launch/build_info.h"
#include "launch/commands.h"
#include "launch/device_choice.h"
#include "launch/training_step.h"
#include "runtime/random.h"

namespace dm {
namespace {

/// Dense bf16 rate of H100 and H200 SXM in FLOP/s (NVIDIA H100 datasheet): what MFU is a share of.
constexpr double kPeak = 989.4e12;

struct BenchOptions {
  std::int64_t warmup = 5;
  std::int64_t repeats = 20;
};

Sequences random_sequences(const TrainOptions& options, const Grid& grid, std::uint64_t step) {
  const RandomStream random(step, fmt::format("tokens of data rank {}", grid.data->rank()));
  Sequences sequences{.count = options.train.batch / grid.data->size(), .tokens = {}, .targets = {}};
  const std::int64_t tokens = sequences.count * options.train.sequence;
  for (std::int64_t i = 0; i <= tokens; ++i) {
    sequences.tokens.push_back(static_cast<std::int32_t>(random.uniform(static_cast<std::uint64_t>(i)) *
                                                         static_cast<float>(options.model.vocabulary)));
  }
  sequences.targets.assign(sequences.tokens.begin() + 1, sequences.tokens.end());
  sequences.tokens.pop_back();
  return sequences;
}

void bench(TrainOptions& options, const BenchOptions& bench_options) {
  std::unique_ptr<Communicator> world = make_mpi_communicator();
  const Device device = choose_device(options.run.device, *world);
  Grid grid = Grid::make(std::move(world), static_cast<int>(options.parallel.tensor), device);
  if (options.model.vocabulary == 0) options.model.vocabulary = 32000;
  options.model.resolve();
  MemoryReport memory;
  TrainingStep training(options, grid, device, nullptr, memory);
  training.store().initialize(training.stream(), static_cast<std::uint64_t>(options.run.seed));
  const auto no_point = [](std::string_view) {};

  Stream host(Device::cpu());
  std::vector<double> milliseconds;
  double loss = 0;
  for (std::int64_t step = 0; step < bench_options.warmup + bench_options.repeats; ++step) {
    Sequences sequences = random_sequences(options, grid, static_cast<std::uint64_t>(step));
    grid.world->barrier(host);
    const double begin = now_seconds();
    loss = training.run(sequences, 1e-4, no_point).loss;
    if (step >= bench_options.warmup) milliseconds.push_back(1e3 * (now_seconds() - begin));
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
                         {"steps", bench_options.repeats},
                         {"ms", median},
                         {"ms_min", milliseconds.front()},
                         {"ms_max", milliseconds.back()},
                         {"tokens_per_second", rate},
                         {"memory_gib", static_cast<double>(memory.total()) / (1 << 30)},
                         {"loss", loss}};
  if (gpu) line["mfu"] = rate * options.model.training_flops_per_token() / (kPeak * grid.world->size());
  std::cout << line.dump() << std::endl;
}

}  // namespace

int bench_step_command(int argc, char** argv) {
  TrainOptions options;
  BenchOptions bench_options;
  OptionTable table = make_train_table(options, "bench-step", "Times whole steps on random tokens; prints one JSON line.");
  table.add("batch", options.train.batch, "The same as --train.batch.", {.min = 1});
  table.add("seq", options.train.sequence, "The same as --train.sequence.", {.min = 1});
  table.add("warmup", bench_options.warmup, "Steps before the clock starts.", {.min = 0});
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
