// The planned arena is exactly what training takes, and the table holds everything.
#include "launch/memory_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "model/optimizer.h"
#include "runtime/error.h"

namespace dm {
namespace {

TrainOptions tiny() {
  TrainOptions options;
  options.model.layers = 3;
  options.model.d_model = 16;
  options.model.vocabulary = 130;
  options.model.resolve();
  options.train.batch = 4;
  options.train.micro_batch = 2;
  options.train.sequence = 24;
  return options;
}

/// The peak of an arena of the planned size that a step and a validation have used.
std::int64_t used_by_training(const TrainOptions& options) {
  const MemoryPlan plan = plan_memory(options, 1, 1, DeviceKind::cpu);
  MemoryReport memory;
  const Device cpu = Device::cpu();
  Stream stream(cpu);
  ParameterStore store(parameter_specs(options.model), {}, cpu, memory);
  store.initialize(stream, 1);
  const auto self = make_self_communicator();
  const LanguageModel model(options.model, store, *self);
  Arena arena(Buffer("activations", plan.activation_bytes, cpu, memory));
  const std::int64_t micro = micro_batch_of(options.train, 1);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(micro * options.train.sequence), 7);
  const Tensor batch = Tensor::of(tokens.data(), {micro, options.train.sequence});
  float loss = 0;
  const Tensor loss_sum = Tensor::of(&loss, {1});
  model.forward_backward(stream, arena, batch, batch, 1.0f, model_options(options.train), loss_sum, {});
  const std::int64_t peak = arena.peak();
  EXPECT_EQ(peak, plan.activation_bytes);
  model.evaluate(stream, arena, batch, batch, model_options(options.train), loss_sum);
  return arena.peak();
}

TEST(MemoryPlan, IsWhatTrainingTakes) {
  TrainOptions options = tiny();
  options.model.layers = 6;  // more than a layer and those it reads
  const std::int64_t plain = used_by_training(options);
  EXPECT_EQ(plain, plan_memory(options, 1, 1, DeviceKind::cpu).activation_bytes);
  options.train.recompute = "selective";
  const std::int64_t selective = used_by_training(options);
  EXPECT_LT(selective, plain);
  options.train.recompute = "block";
  EXPECT_LT(used_by_training(options), selective);
  options.train.loss_chunk = 8;
  used_by_training(options);
  options.train.micro_batch = 1;
  EXPECT_LT(used_by_training(options), plain);
  options.model.dense_depth = 0;
  used_by_training(options);
}

TEST(MemoryPlan, KnowsGpusThatAreNotHere) {
  const TrainOptions options = tiny();
  const MemoryPlan cpu = plan_memory(options, 1, 1, DeviceKind::cpu), gpu = plan_memory(options, 1, 1, DeviceKind::cuda);
  EXPECT_LT(gpu.activation_bytes, cpu.activation_bytes) << "activations are bfloat16";
  const auto masters = [](const MemoryPlan& plan) {
    return std::count_if(plan.entries.begin(), plan.entries.end(),
                         [](const auto& entry) { return entry.first == "master parameters"; });
  };
  EXPECT_EQ(masters(gpu), 1);
  EXPECT_EQ(masters(cpu), 0);
}

TEST(MemoryPlan, AddsUpAndShrinksWithTheGrid) {
  const TrainOptions options = tiny();
  const MemoryPlan one = plan_memory(options, 1, 1, DeviceKind::cpu), data = plan_memory(options, 2, 1, DeviceKind::cpu),
                   tensor = plan_memory(options, 1, 2, DeviceKind::cpu);
  for (const MemoryPlan& plan : {one, data, tensor}) {
    const auto sum = std::accumulate(plan.entries.begin(), plan.entries.end(), std::int64_t{0},
                                     [](std::int64_t bytes, const auto& entry) { return bytes + entry.second; });
    EXPECT_NEAR(static_cast<double>(sum), static_cast<double>(plan.total), 256.0 * 64);  // alignment
    EXPECT_EQ(memory_table(plan).size(), plan.entries.size() + 1);
  }
  EXPECT_EQ(data.activation_bytes, one.activation_bytes);
  EXPECT_LT(data.total, one.total);
  EXPECT_LT(tensor.activation_bytes, one.activation_bytes);
  EXPECT_LT(tensor.total, one.total);
}

TEST(MicroBatch, IsTheShareWhereThatIsSmallerAndMustDivide) {
  TrainOptions::Train train = tiny().train;
  EXPECT_EQ(micro_batch_of(train, 1), 2);
  EXPECT_EQ(micro_batch_of(train, 4), 1);
  train.micro_batch = 3;
  EXPECT_THROW(micro_batch_of(train, 1), Error);
  EXPECT_EQ(micro_batch_of(train, 2), 2);
  EXPECT_THROW(micro_batch_of(train, 3), Error);
}

}  // namespace
}  // namespace dm
