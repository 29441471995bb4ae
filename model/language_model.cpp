// Layers in order, then in reverse.
#include "model/language_model.h"

#include <fmt/format.h>

#include "kernels/elementwise.h"
#include "kernels/rmsnorm.h"

namespace dm {

using Part = DenseHistory::Part;

LanguageModel::LanguageModel(const ModelConfig& config, const ParameterStore& store, Communicator& tensor)
    : config_(config),
      compute_(store.compute_dtype()),
      tensor_(std::make_unique<TensorGroup>(tensor)),
      vocabulary_(config, store, tensor),
      final_norm_(store.parameter("backbone.norm_f.weight")) {
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    norms_.push_back(store.parameter(fmt::format("backbone.layers.{}.norm.weight", layer)));
    mixers_.emplace_back(config, layer, store, *tensor_);
  }
}

ActivationShape LanguageModel::shape_of(const Tensor& tokens) const {
  return {tokens.size(0), tokens.size(1), local_channels(), compute_, tokens.device().kind};
}

LanguageModel::Top LanguageModel::forward(Stream& stream, Arena& arena, const Tensor& tokens, DenseHistory& history,
                                          const BlockHooks& hooks) const {
  const Shape stream_shape{tokens.size(0), tokens.size(1), config_.d_model};
  const auto allocate = [&](Shape shape, DType dtype) { return arena.allocate(shape, dtype, "residual stream"); };
  const Top top{allocate(stream_shape, DType::f32), allocate({tokens.numel()}, DType::f32),
                allocate(stream_shape, compute_)};
  const Tensor residual = top.residual, update = top.x;  // update: a layer's output, until the next norm adds it
  const auto before_use = [&](int block) {
    if (hooks.before_use) hooks.before_use(block);
  };

  before_use(small_block(config_));
  before_use(0);
  vocabulary_.embed(stream, tokens, residual);
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    const Mixer& mixer = mixers_[static_cast<std::size_t>(layer)];
    const Mixer::Projected& projected = history.projected(layer);
    const Mixer::Mixed& mixed = history.mixed(layer);
    before_use(static_cast<int>(layer) + 1);
    for (const Part part : {Part::xh_z, Part::scan_inputs, Part::gate}) history.claim(part, layer);
    add_rmsnorm_forward(stream, residual, layer == 0 ? Tensor() : update, norm(layer).value, residual, projected.x,
                        history.rstd(layer));
    mixer.project(stream, projected, {}, {});
    mixer.gate(stream, projected, mixed);
    mixer.mix(stream, projected, history.chunk_states(layer), {}, history.sources(layer), mixed);
    mixer.output(stream, mixed, update);
  }
  add_rmsnorm_forward(stream, residual, update, final_norm_.value, residual, top.x, top.rstd);
  return top;
}

void LanguageModel::restore(Stream& stream, std::int64_t layer, DenseHistory& history) const {
  for (std::int64_t at = layer - config_.sources_of(layer); at <= layer; ++at) {
    if (history.holds(Part::scan_inputs, at)) continue;
    const Mixer::Known known{.xh_z = history.holds(Part::xh_z, at), .dbc = true};
    mixers_[static_cast<std::size_t>(at)].project(stream, history.projected(at), {}, known);
    history.claim(Part::xh_z, at);
    history.claim(Part::scan_inputs, at);
  }
  if (!history.holds(Part::gate, layer)) {
    mixers_[static_cast<std::size_t>(layer)].gate(stream, history.projected(layer), history.mixed(layer));
    history.claim(Part::gate, layer);
  }
}

void LanguageModel::backward(Stream& stream, Arena& arena, const Tensor& tokens, const Top& top, const Tensor& dtop,
                             DenseHistory& history, const BlockHooks& hooks) const {
  const Arena::Scope scope(arena);
  const bool rounds = compute_ != DType::f32;  // a layer's dout is the residual stream's cotangent in the compute dtype
  const Tensor dresidual = top.residual;       // its values are spent
  const Tensor dupdate = rounds ? top.x : Tensor(), dout = rounds ? dupdate : dresidual, dx = dtop;
  const auto gradient_done = [&](int block) {
    if (hooks.gradient_done) hooks.gradient_done(block);
  };

  fill(stream, dresidual, 0.0f);
  rmsnorm_backward(stream, dtop, top.x, top.rstd, final_norm_.value, dresidual, dupdate, final_norm_.gradient);
  for (std::int64_t layer = config_.layers - 1; layer >= 0; --layer) {
    restore(stream, layer, history);
    mixers_[static_cast<std::size_t>(layer)].backward(stream, arena, dout, history.projected(layer), history.mixed(layer),
                                                      history.chunk_states(layer), history.sources(layer),
                                                      history.readers(layer), history.q(layer), dx);
    rmsnorm_backward(stream, dx, history.projected(layer).x, history.rstd(layer), norm(layer).value, dresidual, dupdate,
                     norm(layer).gradient);
    gradient_done(static_cast<int>(layer) + 1);
  }
  vocabulary_.embed_backward(stream, tokens, dresidual);
  gradient_done(0);
  gradient_done(small_block(config_));
}

void LanguageModel::forward_backward(Stream& stream, Arena& arena, const Tensor& tokens, const Tensor& targets, float scale,
                                     const Options& options, const Tensor& loss_sum, const BlockHooks& hooks) const {
  const Arena::Scope scope(arena);
  DenseHistory history(arena, config_, shape_of(tokens), /*training=*/true, options.recompute, mixers_);
  const Top top = forward(stream, arena, tokens, history, hooks);
  const Tensor dtop = arena.allocate(top.x.shape(), compute_, "backward scratch");
  vocabulary_.loss(stream, arena, top.x, targets, options.loss_chunk, scale, dtop, loss_sum);
  backward(stream, arena, tokens, top, dtop, history, hooks);
}

void LanguageModel::evaluate(Stream& stream, Arena& arena, const Tensor& tokens, const Tensor& targets,
                             const Options& options, const Tensor& loss_sum) const {
  const Arena::Scope scope(arena);
  DenseHistory history(arena, config_, shape_of(tokens), /*training=*/false, Recompute::none, mixers_);
  const Top top = forward(stream, arena, tokens, history, {});
  vocabulary_.loss(stream, arena, top.x, targets, options.loss_chunk, 0.0f, Tensor(), loss_sum);
}

void LanguageModel::logits(Stream& stream, Arena& arena, const Tensor& tokens, const Tensor& logits) const {
  const Arena::Scope scope(arena);
  DenseHistory history(arena, config_, shape_of(tokens), /*training=*/false, Recompute::none, mixers_);
  const Top top = forward(stream, arena, tokens, history, {});
  vocabulary_.logits(stream, top.x, logits);
}

}  // namespace dm
