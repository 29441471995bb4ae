// The forward pass of the model with states carried in and out of every layer.
#include "model/decoder.h"

#include <utility>

#include "kernels/elementwise.h"
#include "model/norm.h"

namespace dm {

Decoder::Decoder(const LanguageModel& model, std::int64_t batch, std::int64_t max_tokens, Device device,
                 MemoryReport& report)
    : model_(model), batch_(batch), max_tokens_(max_tokens) {
  require(batch >= 1 && max_tokens >= 1, "generation needs at least one text and one token");
  const ModelConfig& config = model.config();
  const std::int64_t D = model.local_channels(), N = config.d_state, W = config.d_conv;
  const std::int64_t history = batch * (W - 1) * D, state = batch * D * N, per_layer = history + 2 * state;
  state_memory_ = Buffer("recurrent states", config.layers * per_layer * size_of(DType::f32), device, report);
  const Tensor memory = state_memory_.tensor({config.layers * per_layer}, DType::f32);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const Tensor part = memory.flat(layer * per_layer, per_layer);
    states_.push_back({part.flat(0, history).reshaped({batch, W - 1, D}), part.flat(history, state).reshaped({batch, D, N}),
                       part.flat(history + state, state).reshaped({batch, D, N})});
  }

  const Device planned = Device::plan(device.kind);
  Arena plan(device.kind);
  Stream planning(planned);
  const std::int64_t columns = model.vocabulary().rows();
  run(planning, plan, Tensor(nullptr, {batch, max_tokens}, DType::i32, planned),
      Tensor(nullptr, {batch, max_tokens, columns}, DType::f32, planned));
  arena_.emplace(Buffer("generation", plan.peak(), device, report));
}

void Decoder::feed(Stream& stream, const Tensor& tokens, const Tensor& logits) {
  require(tokens.size(0) == batch_ && tokens.size(1) <= max_tokens_, "more tokens at a time than the decoder was made for");
  run(stream, *arena_, tokens, logits);
  for (LayerState& state : states_) std::swap(state.before, state.after);
}

void Decoder::reset(Stream& stream) {
  for (LayerState& state : states_) {
    fill(stream, state.before, 0.0f);
    fill(stream, state.conv_history, 0.0f);
  }
}

void Decoder::run(Stream& stream, Arena& arena, const Tensor& tokens, const Tensor& logits) {
  const Arena::Scope scope(arena);
  const ModelConfig& config = model_.config();
  const ActivationShape shape{tokens.size(0), tokens.size(1), model_.local_channels(), model_.compute_dtype(),
                              tokens.device().kind};
  DenseHistory history(arena, config, shape, /*training=*/false, Recompute::none, model_.mixers());
  const Shape stream_shape{shape.batch, shape.tokens, config.d_model};
  const Tensor residual = arena.allocate(stream_shape, DType::f32, "residual stream");
  const Tensor update = arena.allocate(stream_shape, shape.compute, "residual stream");
  std::vector<ScanRecurrence> sources;

  TensorGroup& group = model_.tensor();
  const Parts whole = Parts::whole(shape.batch, shape.tokens);  // few rows: a sum of them is one short wait

  model_.vocabulary().embed(stream, tokens, residual);
  group.start_sum(stream, whole, residual, 0, 1);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const Mixer& mixer = model_.mixers()[static_cast<std::size_t>(layer)];
    const LayerState& state = states_[static_cast<std::size_t>(layer)];
    const Mixer::Carry carry{state.conv_history, state.before, state.after};
    history.claim(DenseHistory::Part::scan_inputs, layer);
    norm_forward(stream, group, whole, 0, residual, layer == 0 ? Tensor() : update, model_.norm(layer).value,
                 history.projected(layer).x, history.rstd(layer));
    mixer.begin_project(stream, history.projected(layer), 0, carry, Tensor(), {});
    mixer.end_project(stream, history.projected(layer), {});
    mixer.gate(stream, history.projected(layer), history.mixed(layer));
    const auto below = history.sources(layer);
    sources.assign(below.begin(), below.end());
    for (std::size_t s = 0; s < sources.size(); ++s) {
      sources[s].initial = states_[static_cast<std::size_t>(layer) - 1 - s].before;  // sources come nearest first
    }
    mixer.mix(stream, history.projected(layer), Tensor(), carry, sources, history.mixed(layer));
    mixer.output(stream, whole, 0, history.mixed(layer), update);
  }
  const Tensor rstd = arena.allocate({shape.batch, shape.tokens}, DType::f32, "residual stream");
  norm_forward(stream, group, whole, 0, residual, update, model_.final_norm().value, update, rstd);
  model_.vocabulary().logits(stream, update, logits);
}

}  // namespace dm
