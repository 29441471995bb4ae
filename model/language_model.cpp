// Layers in order, then in reverse.
#include "model/language_model.h"

#include <utility>

#include <fmt/format.h>

#include "kernels/elementwise.h"
#include "model/norm.h"

namespace dm {

using Part = DenseHistory::Part;

LanguageModel::LanguageModel(const ModelConfig& config, const ParameterStore& store, Communicator& tensor,
                             std::int64_t worth_halving)
    : config_(config),
      compute_(store.compute_dtype()),
      worth_halving_(worth_halving),
      tensor_(std::make_unique<TensorGroup>(tensor)),
      vocabulary_(config, store, tensor),
      final_norm_(store.parameter("backbone.norm_f.weight")) {
  const FlatRange small = store.partition().block(small_block(config));
  small_gradients_ = store.gradients().flat(small.begin, small.size);
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    norms_.push_back(store.parameter(fmt::format("backbone.layers.{}.norm.weight", layer)));
    mixers_.emplace_back(config, layer, store, *tensor_);
  }
}

ActivationShape LanguageModel::shape_of(const Tensor& tokens) const {
  return {tokens.size(0), tokens.size(1), local_channels(), compute_, tokens.device().kind};
}

LanguageModel::Exchange LanguageModel::exchange(Arena& arena, const ActivationShape& shape) const {
  const int rank = tensor_->ranks().rank(), ranks = tensor_->ranks().size();
  const bool gpu = shape.device == DeviceKind::cuda;
  const bool halves = ranks > 1 && (!gpu || shape.batch / 2 * shape.local_channels >= worth_halving_);
  Exchange exchange{.parts = Parts(shape.batch, shape.tokens, rank, ranks, halves), .small = {}};
  if (!gpu || !exchange.parts.cut()) return exchange;  // on the CPU nobody sends
  const auto allocate = [&](Shape of, DType dtype) { return arena.allocate(of, dtype, "sums of other ranks"); };
  exchange.parts.receive(allocate({ranks - 1, shape.rows() / ranks, config_.d_model}, shape.compute));
  const std::int64_t gates = config_.dense_depth > 0 ? config_.gate_rank : 0;
  if (ranks == 2) {
    exchange.small = allocate({shape.batch, shape.tokens, config_.dt_rank + 2 * config_.d_state + gates}, DType::f32);
  }
  return exchange;
}

LanguageModel::Top LanguageModel::forward(Stream& stream, Arena& arena, const Tensor& tokens, const Exchange& exchange,
                                          DenseHistory& history, const BlockHooks& hooks) const {
  const Shape stream_shape{tokens.size(0), tokens.size(1), config_.d_model};
  const auto allocate = [&](Shape shape, DType dtype) { return arena.allocate(shape, dtype, "residual stream"); };
  const Top top{allocate(stream_shape, DType::f32), allocate(tokens.shape(), DType::f32), allocate(stream_shape, compute_)};
  const Tensor residual = top.residual, update = top.x;  // update: a layer's output, until the next norm adds it
  const Parts& parts = exchange.parts;
  const auto before_use = [&](int block) {
    if (hooks.before_use) hooks.before_use(block);
  };
  // Parts of layers are numbered in the order of work: the x of this one and of all before is made, and on its way.
  std::int64_t normalised = -1;
  const auto normalise_up_to = [&](std::int64_t item) {
    while (normalised < item) {
      const std::int64_t layer = ++normalised / parts.count();
      const bool last = layer == config_.layers;
      norm_forward(stream, *tensor_, parts, static_cast<int>(normalised % parts.count()), residual,
                   layer == 0 ? Tensor() : update, last ? final_norm_.value : norm(layer).value,
                   last ? top.x : history.projected(layer).x, last ? top.rstd : history.rstd(layer));
    }
  };

  before_use(small_block(config_));
  before_use(0);
  vocabulary_.embed(stream, tokens, residual);
  for (int i = 0; i < parts.count(); ++i) tensor_->start_sum(stream, parts, residual, i, 1, /*receives=*/false);
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    const Mixer& mixer = mixers_[static_cast<std::size_t>(layer)];
    before_use(static_cast<int>(layer) + 1);
    for (const Part part : {Part::xh_z, Part::scan_inputs, Part::gate}) history.claim(part, layer);
    for (int i = 0; i < parts.count(); ++i) {
      const Mixer::Projected projected = history.projected(layer).part(parts, i);
      const Mixer::Mixed mixed = history.mixed(layer).part(parts, i);
      const std::int64_t item = layer * parts.count() + i;
      normalise_up_to(item);
      mixer.begin_project(stream, projected, i, {}, exchange.small_of(projected.dbc), {});
      if (parts.count() > 1) normalise_up_to(item + 1);  // the other part, whose sum came during this one's products
      mixer.end_project(stream, projected, {});
      mixer.gate(stream, projected, mixed);
      mixer.mix(stream, projected, parts.of(history.chunk_states(layer), i), {}, history.sources(layer, parts, i), mixed);
      mixer.output(stream, parts, i, mixed, update);
    }
  }
  normalise_up_to((config_.layers + 1) * parts.count() - 1);
  for (int i = 0; i < parts.count(); ++i) tensor_->finish(stream, i);
  return top;
}

void LanguageModel::restore(Stream& stream, std::int64_t layer, DenseHistory& history) const {
  for (std::int64_t at = layer - config_.sources_of(layer); at <= layer; ++at) {
    if (history.holds(Part::scan_inputs, at)) continue;
    const Mixer& mixer = mixers_[static_cast<std::size_t>(at)];
    const Mixer::Known known{.xh_z = history.holds(Part::xh_z, at), .dbc = true};
    mixer.begin_project(stream, history.projected(at), 0, {}, Tensor(), known);
    mixer.end_project(stream, history.projected(at), known);
    history.claim(Part::xh_z, at);
    history.claim(Part::scan_inputs, at);
  }
  if (!history.holds(Part::gate, layer)) {
    mixers_[static_cast<std::size_t>(layer)].gate(stream, history.projected(layer), history.mixed(layer));
    history.claim(Part::gate, layer);
  }
}

void LanguageModel::backward(Stream& stream, Arena& arena, const Tensor& tokens, const Exchange& exchange, const Top& top,
                             const Tensor& dtop, DenseHistory& history, Accumulate gradients,
                             const BlockHooks& hooks) const {
  const Arena::Scope scope(arena);
  const Parts& parts = exchange.parts;
  const Tensor dresidual = top.residual;  // its values are spent
  Tensor dout = dtop, dx = top.x;         // a layer's; dout takes dx's place, and the layer below has the other for its dx
  const auto gradient_done = [&](int block) {
    if (hooks.gradient_done) hooks.gradient_done(block);
  };
  // Of every norm, the own rows' part of its weight's gradient where rows are cut.
  const Tensor norm_parts =
      parts.cut() ? arena.allocate({config_.layers + 1, config_.d_model}, DType::f32, "backward scratch") : Tensor();
  const auto norm_gradient = [&](std::int64_t layer) {
    return norm_parts               ? norm_parts.slice(layer, 1).flat()
           : layer < config_.layers ? norm(layer).gradient
                                    : final_norm_.gradient;
  };
  if (norm_parts) fill(stream, norm_parts, 0.0f);

  fill(stream, dresidual, 0.0f);
  tensor_->start_sum(stream, parts, dout, 0, parts.count());
  norm_backward(stream, *tensor_, parts, dout, top.x, top.rstd, final_norm_.value, dresidual, norm_gradient(config_.layers),
                dout);
  for (std::int64_t layer = config_.layers - 1; layer >= 0; --layer) {
    const Arena::Scope layer_scope(arena);
    const Mixer& mixer = mixers_[static_cast<std::size_t>(layer)];
    const Mixer::Projected& projected = history.projected(layer);
    const Mixer::Mixed& mixed = history.mixed(layer);
    restore(stream, layer, history);
    const Mixer::Cotangents cotangents =
        mixer.backward(stream, arena, parts, exchange.small, dout, projected, mixed, history.chunk_states(layer),
                       history.sources(layer), history.readers(layer), history.q(layer), dx, gradients);
    norm_backward(stream, *tensor_, parts, dx, projected.x, history.rstd(layer), norm(layer).value, dresidual,
                  norm_gradient(layer), layer > 0 ? dx : dresidual);
    mixer.backward_weights(stream, cotangents, projected, mixed, gradients);
    gradient_done(static_cast<int>(layer) + 1);
    std::swap(dout, dx);
  }
  for (int i = 0; i < parts.count(); ++i) tensor_->finish(stream, i);
  if (norm_parts) tensor_->start_sum(stream, norm_parts, Tensor());
  vocabulary_.embed_backward(stream, tokens, dresidual);
  if (norm_parts) {
    tensor_->finish_sum(stream);
    for (std::int64_t layer = 0; layer < config_.layers; ++layer) add_to(stream, norm_gradient(layer), norm(layer).gradient);
    add_to(stream, norm_gradient(config_.layers), final_norm_.gradient);
  }
  gradient_done(0);
  gradient_done(small_block(config_));
}

void LanguageModel::forward_backward(Stream& stream, Arena& arena, const Tensor& tokens, const Tensor& targets, float scale,
                                     const Options& options, const Tensor& loss_sum, const BlockHooks& hooks) const {
  const Arena::Scope scope(arena);
  const Exchange exchange = this->exchange(arena, shape_of(tokens));
  DenseHistory history(arena, config_, shape_of(tokens), /*training=*/true, options.recompute, mixers_);
  const Top top = forward(stream, arena, tokens, exchange, history, hooks);
  const Tensor dtop = arena.allocate(top.x.shape(), compute_, "backward scratch");
  // A product may as well write as add; where sums are added up bit by bit, zeros come first.
  if (options.gradients == Accumulate::overwrite) fill(stream, small_gradients_, 0.0f);
  vocabulary_.loss(stream, arena, top.x, targets, options.loss_chunk, scale, dtop, loss_sum, options.gradients);
  backward(stream, arena, tokens, exchange, top, dtop, history, options.gradients, hooks);
}

void LanguageModel::evaluate(Stream& stream, Arena& arena, const Tensor& tokens, const Tensor& targets,
                             const Options& options, const Tensor& loss_sum) const {
  const Arena::Scope scope(arena);
  const Exchange exchange = this->exchange(arena, shape_of(tokens));
  DenseHistory history(arena, config_, shape_of(tokens), /*training=*/false, Recompute::none, mixers_);
  const Top top = forward(stream, arena, tokens, exchange, history, {});
  vocabulary_.loss(stream, arena, top.x, targets, options.loss_chunk, 0.0f, Tensor(), loss_sum, Accumulate::add);
}

void LanguageModel::logits(Stream& stream, Arena& arena, const Tensor& tokens, const Tensor& logits) const {
  const Arena::Scope scope(arena);
  const Exchange exchange = this->exchange(arena, shape_of(tokens));
  DenseHistory history(arena, config_, shape_of(tokens), /*training=*/false, Recompute::none, mixers_);
  const Top top = forward(stream, arena, tokens, exchange, history, {});
  vocabulary_.logits(stream, top.x, logits);
}

}  // namespace dm
