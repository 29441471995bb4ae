// The planning run and its table.
#include "launch/memory_plan.h"

#include <algorithm>

#include <fmt/format.h>

#include "launch/training_step.h"
#include "model/optimizer.h"

namespace dm {

std::int64_t micro_batch_of(const TrainOptions::Train& train, int data_size) {
  if (train.batch % data_size != 0) {
    fail(fmt::format("--train.batch {} does not divide over {} data ranks; make it a multiple", train.batch, data_size),
         ExitCode::usage);
  }
  const std::int64_t share = train.batch / data_size, micro = std::min(train.micro_batch, share);
  if (share % micro != 0) {
    fail(fmt::format("a rank's {} sequences a step do not divide into micro-batches of {}; change --train.micro_batch or "
                     "--train.batch",
                     share, micro),
         ExitCode::usage);
  }
  return micro;
}

Buffer sharing_workspace(int ranks, Device device, MemoryReport& report) {
  if (ranks == 1 || device.kind == DeviceKind::cpu) return {};
  return Buffer("staging between GPUs", kSharingBytes, device, report);
}

LanguageModel::Options model_options(const TrainOptions::Train& train) {
  const Recompute recompute = train.recompute == "block"       ? Recompute::block
                              : train.recompute == "selective" ? Recompute::selective
                                                               : Recompute::none;
  return {.recompute = recompute, .loss_chunk = train.loss_chunk};
}

MemoryPlan plan_memory(const TrainOptions& options, int data_size, int tensor_size, DeviceKind kind) {
  const Device device = Device::plan(kind);
  MemoryReport report;
  Grid grid = Grid::plan(data_size, tensor_size);
  Stream stream(device);
  const ParameterStore store(parameter_specs(options.model), {0, tensor_size, 0, data_size}, device, report,
                             compute_dtype_of(options, kind));
  const PartitionedAdamW optimizer(store, grid, {}, report);
  const LanguageModel model(options.model, store, *grid.tensor);
  const Buffer data_sharing = sharing_workspace(data_size, device, report),
               tensor_sharing = sharing_workspace(tensor_size, device, report);

  Arena arena(kind);
  const Shape shape{micro_batch_of(options.train, data_size), options.train.sequence};
  const Tensor tokens(nullptr, shape, DType::i32, device), loss(nullptr, {1}, DType::f32, device);
  model.forward_backward(stream, arena, tokens, tokens, 1.0f, model_options(options.train), loss, {});

  MemoryPlan plan;
  plan.activation_bytes = arena.peak();
  plan.entries = report.entries();
  for (auto& [tag, bytes] : arena.peak_by_tag()) plan.entries.emplace_back("activations: " + tag, bytes);
  plan.total = report.total() + arena.peak();
  return plan;
}

std::vector<std::string> memory_table(const MemoryPlan& plan) {
  std::size_t width = 0;
  for (const auto& [name, bytes] : plan.entries) width = std::max(width, name.size());
  const auto line = [&](const std::string& name, std::int64_t bytes) {
    return fmt::format("  {:<{}}  {:>12.2f} MiB", name, width, static_cast<double>(bytes) / (1 << 20));
  };
  std::vector<std::string> lines;
  for (const auto& [name, bytes] : plan.entries) lines.push_back(line(name, bytes));
  lines.push_back(line("total", plan.total));
  return lines;
}

std::string describe_model(const ModelConfig& config) {
  const std::string kind =
      config.dense_depth == 0 ? "Mamba" : fmt::format("DenseMamba, each layer reading {} below", config.dense_depth);
  return fmt::format(
      "{}: {} layers, width {}, {} channels × {} states, vocabulary {} (padded {}), {} parameters, {:.1f} MFLOP a trained "
      "token",
      kind, config.layers, config.d_model, config.d_inner(), config.d_state, config.vocabulary, config.padded_vocabulary(),
      config.parameters(), config.training_flops_per_token() * 1e-6);
}

}  // namespace dm
