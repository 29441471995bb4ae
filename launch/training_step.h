// One rank's model, optimizer and memory on its device, and what a step does with them.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "launch/memory_plan.h"
#include "launch/train_options.h"
#include "model/optimizer.h"
#include "parallel/grid.h"
#include "runtime/arena.h"
#include "runtime/stream.h"

namespace dm {

/// This rank's sequences of one step: [count, T] each, the same on all ranks of a tensor group.
struct Sequences {
  std::int64_t count = 0;
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> targets;
};

/// Works for the trainer and for bench-step alike. Collective over the grid. Gradients are reduced on a second stream while
/// backward goes on, and updated values are gathered there while the next forward begins; on the CPU both are one stream's
/// work.
class TrainingStep {
 public:
  /// What a step gave, the same on every rank.
  struct Result {
    double loss = 0;           ///< Mean cross-entropy in nats a token.
    double gradient_norm = 0;  ///< Before clipping.
    bool updated = false;      ///< False when a NaN or Inf made all ranks skip the update.
  };
  /// Called at "forward", "backward", "reduce" and "gradient" (with the reduced gradients in place), for the watchdog and
  /// for faults.
  using AtPoint = std::function<void(std::string_view point)>;

  /// Takes all memory of the rank, as `plan_memory` planned it. `options` (model resolved) and `grid` outlive the step.
  /// Throws Error when memory is short.
  TrainingStep(const TrainOptions& options, Grid& grid, Device device, Trace* trace, MemoryReport& memory);

  /// Forward, backward and update on the whole step's batch; waits for its result.
  Result run(Sequences& sequences, double lr, const AtPoint& at_point);
  /// Mean cross-entropy of `count` sequences over all data ranks.
  double evaluate(Sequences& sequences);

  Stream& stream() { return stream_; }
  ParameterStore& store() { return *store_; }
  PartitionedAdamW& optimizer() { return *optimizer_; }
  const MemoryPlan& plan() const { return plan_; }

 private:
  /// [count, T] of host tokens on the device.
  struct DeviceBatch {
    Tensor tokens, targets;
  };
  DeviceBatch upload(Sequences& sequences);
  void accumulate(Sequences& sequences, const AtPoint& at_point);
  void reduce(int block);
  void gather(int block);
  /// [2] f32 on the device: sum of the losses, squared gradient norm.
  Tensor results() const { return results_.tensor({2}, DType::f32); }
  /// The same on the host, after all work given so far.
  const float* read_results();

  const TrainOptions& options_;
  Grid& grid_;
  MemoryReport& memory_;
  Stream stream_;
  Stream communication_;
  MemoryPlan plan_;
  std::optional<ParameterStore> store_;
  std::optional<PartitionedAdamW> optimizer_;
  std::optional<LanguageModel> model_;
  std::optional<Arena> arena_;
  Buffer results_, host_results_;
  Buffer device_tokens_, host_tokens_;  // of a GPU; grown to the largest batch seen
  Event ready_;                         // of the compute stream, for the communication stream
  std::vector<Event> gathered_;         // by block
};

/// bf16 on a GPU and float32 on the CPU for "auto". Throws Error (usage) for bf16 on the CPU.
DType compute_dtype_of(const TrainOptions& options, DeviceKind device);

}  // namespace dm
