// One rank's model, optimizer and memory on its device, and what a step does with them.
#pragma once

#include <array>
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
#include "runtime/repeated_work.h"
#include "runtime/stream.h"

namespace dm {

/// This rank's sequences of one step: [count, T] each, the same on all ranks of a tensor group.
struct Sequences {
  std::int64_t count = 0;
  std::vector<std::int32_t> tokens;
  std::vector<std::int32_t> targets;
};

/// Works for the trainer and for bench-step alike. Collective over the grid. Where parallel.overlap says so, gradients are
/// reduced on a second stream while backward goes on, and updated values are gathered there while later blocks are updated
/// and the next forward begins; else each is one operation between computations. On a GPU the host runs ahead: `start`
/// returns when the step is given to the device, forward and backward as a graph that is recorded once, and the one read of
/// a step is `finish`.
class TrainingStep {
 public:
  /// What a step gave, the same on every rank.
  struct Result {
    double loss = 0;            ///< Mean cross-entropy in nats a token.
    double gradient_norm = 0;   ///< Before clipping.
    bool updated = false;       ///< False when a NaN or Inf made all ranks skip the update.
    double device_seconds = 0;  ///< From the first operation on a GPU to the last, waits for other ranks included; CPU: 0.
  };
  /// Called at "forward", "backward", "reduce" and "gradient" (with the reduced gradients in place) as that work is given to
  /// the stream, for the watchdog and for faults.
  using AtPoint = std::function<void(std::string_view point)>;

  /// Takes all memory of the rank, as `plan_memory` planned it. `options` (model resolved) and `grid` outlive the step.
  /// Throws Error when memory is short.
  TrainingStep(const TrainOptions& options, Grid& grid, Device device, Trace* trace, MemoryReport& memory);

  /// Steps that may be started and not finished before the next is started: on a GPU one, which hides the host's work.
  int ahead() const { return stream_.device().kind == DeviceKind::cuda ? 1 : 0; }
  /// Forward, backward and update on the whole step's batch; `sequences` are not needed any more when it returns. At most
  /// ahead() steps are unfinished before the call.
  void start(Sequences& sequences, double lr, const AtPoint& at_point);
  int unfinished() const { return static_cast<int>(started_ - finished_); }
  /// The result of the oldest unfinished step; waits for it.
  Result finish();
  /// Mean cross-entropy of `count` sequences over all data ranks. No step is unfinished.
  double evaluate(Sequences& sequences);

  Stream& stream() { return stream_; }
  ParameterStore& store() { return *store_; }
  PartitionedAdamW& optimizer() { return *optimizer_; }
  const MemoryPlan& plan() const { return plan_; }

 private:
  /// [count, T] of tokens on the device.
  struct DeviceBatch {
    Tensor tokens, targets;
  };
  /// What is kept of each unfinished step until it is finished.
  struct Slot {
    Buffer tokens;  ///< Page-locked, of a GPU: [2, sequences a rank, T].
    Buffer results;
    Event begun, done;
  };

  Slot& slot() { return slots_[static_cast<std::size_t>(started_ % 2)]; }
  /// `count` sequences from `begin` on, where the device sees them: always in the same place on a GPU.
  DeviceBatch upload(Sequences& sequences, std::int64_t begin, std::int64_t count);
  void accumulate(Sequences& sequences, const AtPoint& at_point);
  void reduce(int block);
  void gather(int block);
  /// [2] f32 on the device: sum of the losses, squared gradient norm.
  Tensor results() const { return results_.tensor({2}, DType::f32); }

  const TrainOptions& options_;
  Grid& grid_;
  Stream stream_;
  Stream communication_;
  bool reduces_beside_;
  bool gathers_beside_ = false;
  MemoryPlan plan_;
  std::optional<ParameterStore> store_;
  std::optional<PartitionedAdamW> optimizer_;
  std::optional<LanguageModel> model_;
  std::optional<Arena> arena_;
  Buffer results_, tokens_;
  Buffer data_sharing_, tensor_sharing_;  // workspaces of the groups, where these are GPUs of one host
  std::array<Slot, 2> slots_;
  std::int64_t started_ = 0, finished_ = 0;
  RepeatedWork first_micro_batch_, next_micro_batches_, last_micro_batch_;  // the last may be the first
  Event ready_;                  // of the compute stream, for the communication stream
  Event reduced_;                // and back
  std::vector<Event> gathered_;  // by block, where there are other data ranks
};

/// bf16 on a GPU and float32 on the CPU for "auto". Throws Error (usage) for bf16 on the CPU.
DType compute_dtype_of(const TrainOptions& options, DeviceKind device);

}  // namespace dm
