// The step's order of work, and which stream does it.
#include "launch/training_step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "kernels/elementwise.h"
#include "parallel/agreement.h"
#include "runtime/copy.h"
#include "runtime/host.h"

namespace dm {

DType compute_dtype_of(const TrainOptions& options, DeviceKind device) {
  const std::string& wanted = options.train.dtype;
  if (wanted == "float32") return DType::f32;
  if (device == DeviceKind::cuda) return DType::bf16;
  if (wanted == "bfloat16") fail("--train.dtype bfloat16 needs a GPU; on the CPU use float32 or auto", ExitCode::usage);
  return DType::f32;
}

namespace {

/// NCCL's blocks take multiprocessors from the kernels beside them: worth it only where the network is slower than a node's.
/// On the CPU work is done as it is given, so blocks may as well go one by one, as soon as they can.
bool reduces_beside(const std::string& option, Device device, Communicator& data_on_host) {
  if (option != "auto") return option == "true";
  if (device.kind == DeviceKind::cpu) return true;
  const std::vector<std::string> hosts = gather_texts(data_on_host, host_name());
  return std::any_of(hosts.begin(), hosts.end(), [&](const std::string& host) { return host != hosts.front(); });
}

/// Lets the GPUs of a group on one host reach `memories`; the group's workspace, or nothing where it is no such group.
Buffer share(Communicator& group, Communicator& on_host, const std::vector<const Buffer*>& memories, Device device,
             MemoryReport& report) {
  Buffer workspace = sharing_workspace(group.size(), device, report);
  if (workspace.bytes() == 0 || !group.share(on_host, memories, workspace)) return {};
  return workspace;
}

}  // namespace

TrainingStep::TrainingStep(const TrainOptions& options, Grid& grid, Device device, Trace* trace, MemoryReport& memory)
    : options_(options),
      grid_(grid),
      stream_(device, trace),
      communication_(device, trace),
      reduces_beside_(reduces_beside(options.parallel.overlap, device, grid.data_on_host())),
      plan_(plan_memory(options, grid.data->size(), grid.tensor->size(), device.kind)) {
  const TrainOptions::Optimizer& o = options.optimizer;
  const PartitionedAdamW::Settings settings{.beta1 = static_cast<float>(o.beta1),
                                            .beta2 = static_cast<float>(o.beta2),
                                            .epsilon = static_cast<float>(o.epsilon),
                                            .weight_decay = static_cast<float>(o.weight_decay),
                                            .clip = static_cast<float>(o.clip)};
  const StorePlace place{grid.tensor->rank(), grid.tensor->size(), grid.data->rank(), grid.data->size()};
  store_.emplace(parameter_specs(options.model), place, device, memory, compute_dtype_of(options, device.kind));
  optimizer_.emplace(*store_, grid, settings, memory);
  model_.emplace(options.model, *store_, *grid.tensor);
  results_ = Buffer("step results", 2 * size_of(DType::f32), device, memory);
  const std::int64_t token_bytes = 2 * options.train.sequence * size_of(DType::i32);  // a sequence and its targets
  for (Slot& slot : slots_) {
    slot.results = Buffer::pinned("step results on the host", 2 * size_of(DType::f32), memory);
    if (device.kind != DeviceKind::cuda) continue;
    slot.tokens = Buffer::pinned("tokens on the host", options.train.batch / grid.data->size() * token_bytes, memory);
  }
  if (device.kind == DeviceKind::cuda) {
    tokens_ = Buffer("tokens", micro_batch_of(options.train, grid.data->size()) * token_bytes, device, memory);
  }
  Buffer activations("activations", plan_.activation_bytes, device, memory);
  tensor_sharing_ = share(*grid.tensor, grid.tensor_on_host(), {&activations}, device, memory);
  data_sharing_ = share(*grid.data, grid.data_on_host(), store_->shared_over_data(), device, memory);
  // Copy engines need nothing of the multiprocessors.
  gathers_beside_ = reduces_beside_ || (options.parallel.overlap == "auto" && data_sharing_.bytes() > 0);
  arena_.emplace(std::move(activations));
  gathered_.resize(static_cast<std::size_t>(store_->partition().blocks()));
}

TrainingStep::DeviceBatch TrainingStep::upload(Sequences& sequences, std::int64_t begin, std::int64_t count) {
  const std::int64_t T = options_.train.sequence;
  const Shape shape{count, T};
  const auto part = [&](std::vector<std::int32_t>& ids) {
    return Tensor::of(ids.data(), {sequences.count, T}).slice(begin, count);
  };
  if (stream_.device().kind == DeviceKind::cpu) return {part(sequences.tokens), part(sequences.targets)};
  const std::int64_t share = options_.train.batch / grid_.data->size();
  if (begin > 0 && begin % share == 0) stream_.synchronize();  // more than a step's: page-locked memory is used again
  const Tensor pinned = slot().tokens.tensor({2, share, T}, DType::i32);
  const Tensor device = tokens_.tensor({2, micro_batch_of(options_.train, grid_.data->size()), T}, DType::i32);
  const auto send = [&](std::vector<std::int32_t>& ids, std::int64_t which) {
    const Tensor host = pinned.slice(which, 1).flat(begin % share * T, count * T),
                 to = device.slice(which, 1).flat(0, count * T);
    std::memcpy(host.data(), part(ids).data(), static_cast<std::size_t>(host.bytes()));
    copy(stream_, host, to);
    return to.reshaped(shape);
  };
  return {send(sequences.tokens, 0), send(sequences.targets, 1)};
}

void TrainingStep::reduce(int block) {
  if (grid_.data->size() == 1) return;
  ready_.record(stream_);
  ready_.hold(communication_);
  optimizer_->reduce_block(communication_, block);
  reduced_.record(communication_);
}

void TrainingStep::gather(int block) {
  if (grid_.data->size() == 1) return;
  ready_.record(stream_);
  ready_.hold(communication_);
  optimizer_->gather_block(communication_, block);
  gathered_[static_cast<std::size_t>(block)].record(communication_);
}

void TrainingStep::accumulate(Sequences& sequences, const AtPoint& at_point) {
  const std::int64_t T = options_.train.sequence, micro = micro_batch_of(options_.train, grid_.data->size());
  const float scale = 1.0f / static_cast<float>(options_.train.batch * T);
  for (std::int64_t begin = 0; begin < sequences.count; begin += micro) {
    at_point("forward");
    const bool first = begin == 0, last = begin + micro == sequences.count,
               at_once = stream_.device().kind == DeviceKind::cpu;
    const DeviceBatch batch = upload(sequences, begin, micro);
    const auto backward_point = [&] {
      at_point("backward");
      if (last) at_point("reduce");
    };
    const LanguageModel::BlockHooks hooks{
        .before_use = [&](int block) { gathered_[static_cast<std::size_t>(block)].hold(stream_); },
        .gradient_done =
            [&](int block) {
              if (at_once) backward_point();
              if (last && reduces_beside_) reduce(block);
            }};
    LanguageModel::Options options = model_options(options_.train);
    options.gradients = first ? Accumulate::overwrite : Accumulate::add;
    (last    ? last_micro_batch_
     : first ? first_micro_batch_
             : next_micro_batches_)
        .run(stream_, [&] {
          model_->forward_backward(stream_, *arena_, batch.tokens, batch.targets, scale, options, results().flat(0, 1),
                                   hooks);
          if (last && reduces_beside_) reduced_.hold(stream_);
          if (last && !reduces_beside_) optimizer_->reduce_all(stream_);
        });
    if (!at_once) backward_point();
  }
}

void TrainingStep::start(Sequences& sequences, double lr, const AtPoint& at_point) {
  require(unfinished() <= ahead(), "too many unfinished steps");
  const Tensor loss_sum = results().flat(0, 1), norm_squared = results().flat(1, 1);
  Slot& slot = this->slot();
  slot.begun.record(stream_);
  fill(stream_, results(), 0.0f);
  accumulate(sequences, at_point);
  at_point("gradient");
  optimizer_->add_gradient_norm_squared(stream_, norm_squared);
  grid_.data->all_reduce(stream_, loss_sum);
  optimizer_->update(stream_, static_cast<float>(lr), loss_sum, norm_squared, [&](int block) {
    if (gathers_beside_) gather(block);
  });
  if (!gathers_beside_) optimizer_->gather_all(stream_);
  copy(stream_, results(), slot.results.tensor({2}, DType::f32));
  slot.done.record(stream_);
  ++started_;
}

TrainingStep::Result TrainingStep::finish() {
  require(unfinished() > 0, "no step is unfinished");
  Slot& slot = slots_[static_cast<std::size_t>(finished_++ % 2)];
  slot.done.synchronize();
  const float* found = slot.results.tensor({2}, DType::f32).as<float>();
  Result result;
  result.loss = static_cast<double>(found[0]) / static_cast<double>(options_.train.batch * options_.train.sequence);
  result.gradient_norm = std::sqrt(static_cast<double>(found[1]));
  result.updated = std::isfinite(result.loss) && std::isfinite(result.gradient_norm);
  if (stream_.native()) result.device_seconds = 1e-3 * Event::elapsed_ms(slot.begun, slot.done);
  return result;
}

double TrainingStep::evaluate(Sequences& sequences) {
  require(unfinished() == 0, "a step is unfinished");
  const std::int64_t T = options_.train.sequence, micro = micro_batch_of(options_.train, grid_.data->size());
  communication_.synchronize();  // values are complete
  const Tensor loss_sum = results().flat(0, 1);
  fill(stream_, loss_sum, 0.0f);
  for (std::int64_t begin = 0; begin < sequences.count; begin += micro) {
    const DeviceBatch batch = upload(sequences, begin, std::min(micro, sequences.count - begin));
    model_->evaluate(stream_, *arena_, batch.tokens, batch.targets, model_options(options_.train), loss_sum);
  }
  grid_.data->all_reduce(stream_, loss_sum);
  const Tensor sum = slot().results.tensor({2}, DType::f32).flat(0, 1);
  copy(stream_, loss_sum, sum);
  stream_.synchronize();
  return static_cast<double>(*sum.as<float>()) / static_cast<double>(sequences.count * T * grid_.data->size());
}

}  // namespace dm
