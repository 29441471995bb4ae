// Ring sizes, and who reads whom.
#include "model/dense_history.h"

#include <algorithm>

namespace dm {

DenseHistory::DenseHistory(Arena& arena, const ModelConfig& config, const ActivationShape& shape, bool training,
                           Recompute recompute, std::span<const Mixer> mixers)
    : config_(config), whole_(Parts::whole(shape.batch, shape.tokens)), mixers_(mixers) {
  const std::int64_t L = config.layers, window = std::min(L, config.dense_depth + 1);
  const std::int64_t B = shape.batch, T = shape.tokens, C = config.d_model, N = config.d_state, G = config.gate_rank;
  const Shape channels{B, T, shape.local_channels}, dbc{B, T, config.dt_rank + 2 * N};
  const DType compute = shape.compute;
  projected_.resize(static_cast<std::size_t>(L));
  mixed_.resize(static_cast<std::size_t>(L));
  chunk_states_.resize(static_cast<std::size_t>(L));

  // Calls set(layer, tensor) for every layer with the tensor of its slot.
  const auto ring = [&](std::int64_t slots, Shape tensor_shape, DType dtype, std::string_view tag, const auto& set) {
    for (std::int64_t slot = 0; slot < slots; ++slot) {
      const Tensor tensor = arena.allocate(tensor_shape, dtype, tag);
      for (std::int64_t layer = slot; layer < L; layer += slots) set(layer, tensor);
    }
  };
  const auto into = [&](std::vector<Tensor>& tensors) {
    tensors.resize(static_cast<std::size_t>(L));
    return [&tensors](std::int64_t layer, const Tensor& tensor) { tensors[index(layer)] = tensor; };
  };
  const auto project = [&](Tensor Mixer::Projected::*member) {
    return [this, member](std::int64_t layer, const Tensor& tensor) { projected_[index(layer)].*member = tensor; };
  };
  const auto mix = [&](Tensor Mixer::Mixed::*member) {
    return [this, member](std::int64_t layer, const Tensor& tensor) { mixed_[index(layer)].*member = tensor; };
  };
  // Of a part that backward makes again at these levels of recomputation.
  const auto slots_of = [&](Part part, bool made_again, std::int64_t at_once) {
    const std::int64_t slots = training && !made_again ? L : at_once;
    owners_[at(part)].assign(static_cast<std::size_t>(slots), -1);
    return slots;
  };

  const std::int64_t kept = training ? L : window;
  ring(kept, {B, T}, DType::f32, "normalised inputs", into(rstd_));
  ring(kept, {B, T, C}, compute, "normalised inputs", project(&Mixer::Projected::x));
  ring(kept, dbc, DType::f32, "x_proj outputs", project(&Mixer::Projected::dbc));
  if (training) {
    const ScanStates states = scan_states(shape.device, compute, B, T, shape.local_channels, N);
    ring(kept, states.shape, states.dtype, "scan chunk states", into(chunk_states_));
  }
  const std::int64_t inputs = slots_of(Part::xh_z, recompute == Recompute::block, window);
  ring(inputs, {B, T, 2 * shape.local_channels}, compute, "in_proj outputs", project(&Mixer::Projected::xh_z));
  const std::int64_t scan_inputs = slots_of(Part::scan_inputs, recompute != Recompute::none, window);
  ring(scan_inputs, channels, compute, "convolution outputs", project(&Mixer::Projected::u));
  ring(scan_inputs, channels, compute, "time steps", project(&Mixer::Projected::dt));
  if (compute == DType::f32) {
    for (Mixer::Projected& projected : projected_) projected.dbc_operand = projected.dbc;
  } else {
    ring(scan_inputs, dbc, compute, "x_proj outputs", project(&Mixer::Projected::dbc_operand));
  }
  ring(1, channels, compute, "scan output", mix(&Mixer::Mixed::out));
  const std::int64_t gates = slots_of(Part::gate, recompute != Recompute::none, 1);
  if (config.dense_depth > 0) {
    ring(gates, {B, T, G}, compute, "dense gates", mix(&Mixer::Mixed::gate_input));
    ring(gates, {B, T, G}, compute, "dense gates", mix(&Mixer::Mixed::gate_hidden));
    ring(gates, channels, compute, "dense gates", mix(&Mixer::Mixed::gate));
    if (training) ring(window, channels, compute, "dense cotangents", into(q_));
  }
}

std::span<const ScanRecurrence> DenseHistory::sources(std::int64_t layer, const Parts& parts, int i) {
  sources_.clear();
  for (std::int64_t below = layer - 1; below >= layer - config_.sources_of(layer); --below) {
    require(holds(Part::scan_inputs, below), "a dense source's scan inputs are gone");
    sources_.push_back(
        mixers_[index(below)].recurrence(projected(below).part(parts, i), parts.of(chunk_states(below), i), {}));
  }
  return sources_;
}

std::span<const ScanReader> DenseHistory::readers(std::int64_t layer) {
  readers_.clear();
  const std::int64_t last = std::min(config_.layers - 1, layer + config_.dense_depth);
  for (std::int64_t above = layer + 1; above <= last; ++above) {
    readers_.push_back({q_[index(above)], projected(above).dbc});
  }
  return readers_;
}

Tensor DenseHistory::q(std::int64_t layer) const {
  return config_.sources_of(layer) > 0 ? q_[index(layer)] : Tensor();
}

}  // namespace dm
