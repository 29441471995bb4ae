// Layers in order, then in reverse.
#include "model/language_model.h"

#include <fmt/format.h>

#include "kernels/elementwise.h"
#include "kernels/rmsnorm.h"

namespace dm {

LanguageModel::LanguageModel(const ModelConfig& config, const ParameterStore& store, Communicator& tensor)
    : config_(config),
      tensor_(&tensor),
      vocabulary_(config, store, tensor),
      final_norm_(store.parameter("backbone.norm_f.weight")) {
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    norms_.push_back(store.parameter(fmt::format("backbone.layers.{}.norm.weight", layer)));
    mixers_.emplace_back(config, layer, store, tensor);
  }
}

ActivationShape LanguageModel::shape_of(const Tensor& tokens) const {
  return {tokens.size(0), tokens.size(1), local_channels()};
}

LanguageModel::Top LanguageModel::forward(Stream& stream, Arena& arena, const Tensor& tokens, DenseHistory& history) const {
  const Shape stream_shape{tokens.size(0), tokens.size(1), config_.d_model};
  const auto allocate = [&](Shape shape) { return arena.allocate(shape, DType::f32, "residual stream"); };
  const Top top{allocate(stream_shape), allocate({tokens.numel()}), allocate(stream_shape)};
  const Tensor update = top.x;  // a layer's output, until the next norm adds it to the residual stream

  vocabulary_.embed(stream, tokens, history.kept(0).residual);
  Tensor residual = history.kept(0).residual;
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    const Mixer& mixer = mixers_[static_cast<std::size_t>(layer)];
    const DenseHistory::Kept& kept = history.kept(layer);
    history.claim(layer);
    history.claim_mixed(layer);
    const Mixer::Projected& projected = history.projected(layer);
    const Mixer::Mixed& mixed = history.mixed(layer);
    add_rmsnorm_forward(stream, residual, layer == 0 ? Tensor() : update, norm(layer).value, kept.residual, projected.x,
                        kept.rstd);
    mixer.project(stream, projected, {}, /*dbc_is_kept=*/false);
    mixer.mix(stream, projected, kept.chunk_states, {}, history.sources(layer), mixed);
    mixer.output(stream, mixed, update);
    residual = kept.residual;
  }
  add_rmsnorm_forward(stream, residual, update, final_norm_.value, top.residual, top.x, top.rstd);
  return top;
}

void LanguageModel::restore(Stream& stream, std::int64_t layer, DenseHistory& history) const {
  for (std::int64_t at = layer - config_.sources_of(layer); at <= layer; ++at) {
    if (history.holds_projected(at)) continue;
    history.claim(at);
    const DenseHistory::Kept& kept = history.kept(at);
    add_rmsnorm_forward(stream, kept.residual, Tensor(), norm(at).value, kept.residual, history.projected(at).x, kept.rstd);
    mixers_[static_cast<std::size_t>(at)].project(stream, history.projected(at), {}, /*dbc_is_kept=*/true);
  }
  if (!history.holds_mixed(layer)) {
    history.claim_mixed(layer);
    mixers_[static_cast<std::size_t>(layer)].mix(stream, history.projected(layer), Tensor(), {}, history.sources(layer),
                                                 history.mixed(layer));
  }
}

void LanguageModel::backward(Stream& stream, Arena& arena, const Tensor& tokens, const Tensor& dresidual,
                             DenseHistory& history, const BlockDone& block_done) const {
  const Arena::Scope scope(arena);
  const Tensor dx = arena.allocate(dresidual.shape(), DType::f32, "backward scratch");
  for (std::int64_t layer = config_.layers - 1; layer >= 0; --layer) {
    restore(stream, layer, history);
    const DenseHistory::Kept& kept = history.kept(layer);
    mixers_[static_cast<std::size_t>(layer)].backward(stream, arena, dresidual, history.projected(layer),
                                                      history.mixed(layer), kept.chunk_states, history.sources(layer),
                                                      history.readers(layer), history.q(layer), dx);
    rmsnorm_backward(stream, dx, kept.residual, kept.rstd, norm(layer).value, dresidual, norm(layer).gradient);
    if (block_done) block_done(static_cast<int>(layer) + 1);
  }
  vocabulary_.embed_backward(stream, tokens, dresidual);
  if (block_done) block_done(0);
}

void LanguageModel::forward_backward(Stream& stream, Arena& arena, const Tensor& tokens, const Tensor& targets, float scale,
                                     const Options& options, const Tensor& loss_sum, const BlockDone& block_done) const {
  const Arena::Scope scope(arena);
  DenseHistory history(arena, config_, shape_of(tokens), /*training=*/true, options.recompute, mixers_);
  const Top top = forward(stream, arena, tokens, history);
  const Tensor dtop = arena.allocate(top.x.shape(), DType::f32, "backward scratch");
  vocabulary_.loss(stream, arena, top.x, targets, options.loss_chunk, scale, dtop, loss_sum);
  const Tensor dresidual = top.x;  // its values are spent
  fill(stream, dresidual, 0.0f);
  rmsnorm_backward(stream, dtop, top.residual, top.rstd, final_norm_.value, dresidual, final_norm_.gradient);
  if (block_done) block_done(static_cast<int>(config_.layers) + 1);
  backward(stream, arena, tokens, dresidual, history, block_done);
}

void LanguageModel::evaluate(Stream& stream, Arena& arena, const Tensor& tokens, const Tensor& targets,
                             const Options& options, const Tensor& loss_sum) const {
  const Arena::Scope scope(arena);
  DenseHistory history(arena, config_, shape_of(tokens), /*training=*/false, Recompute::none, mixers_);
  const Top top = forward(stream, arena, tokens, history);
  vocabulary_.loss(stream, arena, top.x, targets, options.loss_chunk, 0.0f, Tensor(), loss_sum);
}

void LanguageModel::logits(Stream& stream, Arena& arena, const Tensor& tokens, const Tensor& logits) const {
  const Arena::Scope scope(arena);
  DenseHistory history(arena, config_, shape_of(tokens), /*training=*/false, Recompute::none, mixers_);
  const Top top = forward(stream, arena, tokens, history);
  vocabulary_.logits(stream, top.x, logits);
}

}  // namespace dm
