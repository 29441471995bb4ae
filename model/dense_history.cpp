// Ring sizes, and who reads whom.
#include "model/dense_history.h"

#include <algorithm>

namespace dm {

DenseHistory::DenseHistory(Arena& arena, const ModelConfig& config, const ActivationShape& shape, bool training,
                           Recompute recompute, std::span<const Mixer> mixers)
    : config_(config), mixers_(mixers), compute_(shape.compute) {
  const auto L = static_cast<std::size_t>(config.layers), window = static_cast<std::size_t>(config.dense_depth) + 1;
  const std::size_t kept_slots = training ? L : std::min(L, window);
  const std::size_t projected_slots = training && recompute == Recompute::none ? L : std::min(L, window);
  const std::size_t mixed_slots = training && recompute == Recompute::none ? L : 1;
  const std::int64_t B = shape.batch, T = shape.tokens, C = config.d_model, N = config.d_state;

  for (std::size_t slot = 0; slot < kept_slots; ++slot) {
    Kept kept;
    kept.residual = arena.allocate({B, T, C}, DType::f32, "residual stream");
    kept.rstd = arena.allocate({shape.rows()}, DType::f32, "residual stream");
    if (training) {
      const ScanStates states = scan_states(shape.device, shape.compute, B, T, shape.local_channels, N);
      kept.chunk_states = arena.allocate(states.shape, states.dtype, "scan chunk states");
    }
    kept_.push_back(kept);
    dbc_.push_back(arena.allocate({B, T, config.dt_rank + 2 * N}, DType::f32, "x_proj outputs"));
  }
  for (std::size_t slot = 0; slot < projected_slots; ++slot) {
    projected_.push_back(Mixer::Projected::allocate(arena, config, shape));
  }
  for (std::size_t slot = 0; slot < mixed_slots; ++slot) {
    const bool dense = mixed_slots == L ? mixers[slot].dense() : config.dense_depth > 0;
    mixed_.push_back(Mixer::Mixed::allocate(arena, config, shape, dense));
  }
  if (training && config.dense_depth > 0) {
    for (std::size_t slot = 0; slot < std::min(L, window); ++slot) {
      q_.push_back(arena.allocate({B, T, shape.local_channels}, shape.compute, "dense cotangents"));
    }
  }
  projected_owner_.assign(projected_slots, -1);
  mixed_owner_.assign(mixed_slots, -1);
}

void DenseHistory::claim(std::int64_t layer) {
  const std::size_t slot = index(layer, projected_);
  projected_[slot].dbc = dbc_[index(layer, dbc_)];
  if (compute_ == DType::f32) projected_[slot].dbc_operand = projected_[slot].dbc;
  projected_owner_[slot] = layer;
}

std::span<const ScanRecurrence> DenseHistory::sources(std::int64_t layer) {
  sources_.clear();
  for (std::int64_t below = layer - 1; below >= layer - config_.sources_of(layer); --below) {
    require(holds_projected(below), "a dense source's projections are gone");
    sources_.push_back(mixers_[static_cast<std::size_t>(below)].recurrence(projected(below), kept(below).chunk_states, {}));
  }
  return sources_;
}

std::span<const ScanReader> DenseHistory::readers(std::int64_t layer) {
  readers_.clear();
  const std::int64_t last = std::min(config_.layers - 1, layer + config_.dense_depth);
  for (std::int64_t above = layer + 1; above <= last; ++above) {
    readers_.push_back({q_[index(above, q_)], dbc_[index(above, dbc_)]});
  }
  return readers_;
}

Tensor DenseHistory::q(std::int64_t layer) const {
  return config_.sources_of(layer) > 0 ? q_[index(layer, q_)] : Tensor();
}

}  // namespace dm
