// Forward reads like the paper; backward is the same lines from the bottom to the top.
#include "model/mixer.h"

#include "kernels/causal_conv.h"
#include "kernels/elementwise.h"
#include "model/linear.h"

namespace dm {

Mixer::Mixer(const ModelConfig& config, std::int64_t layer, const ParameterStore& store, TensorGroup& tensor)
    : R_(config.dt_rank), N_(config.d_state), dense_(config.sources_of(layer) > 0), tensor_(&tensor) {
  const std::string prefix = mixer_prefix(layer);
  const auto parameter = [&](const char* name) { return store.parameter(prefix + name); };
  in_proj_ = parameter("in_proj.weight");
  const std::int64_t D = in_proj_.value.size(0) / 2;
  in_xh_ = in_proj_.value.slice(0, D), in_z_ = in_proj_.value.slice(D, D);
  conv_weight_ = parameter("conv1d.weight");
  const Shape taps{D, config.d_conv};  // [D, 1, W] in checkpoints
  conv_weight_ = {conv_weight_.value.reshaped(taps), conv_weight_.gradient.reshaped(taps)};
  conv_bias_ = parameter("conv1d.bias");
  x_proj_ = parameter("x_proj.weight");
  dt_proj_ = parameter("dt_proj.weight");
  dt_bias_ = parameter("dt_proj.bias");
  A_log_ = parameter("A_log");
  skip_ = parameter("D");
  out_proj_ = parameter("out_proj.weight");
  if (dense_) {
    gate_fc1_ = parameter("dense_gate.fc1.weight");
    gate_fc2_ = parameter("dense_gate.fc2.weight");
  }
}

void Mixer::begin_project(Stream& stream, const Projected& p, int part, const Carry& carry, const Tensor& inbox,
                          Known known) const {
  if (!known.dbc) tensor_->finish(stream, part);
  if (!known.xh_z && projects_at_once()) linear_forward(stream, p.x, in_proj_.value, p.xh_z);
  if (!known.xh_z && !projects_at_once()) linear_forward(stream, p.x, in_xh_, p.xh());
  causal_conv_silu_forward(stream, p.xh(), conv_weight_.value, conv_bias_.value, carry.conv_history, p.u);
  if (known.dbc) return;
  linear_forward(stream, p.u, x_proj_.value, p.dbc);
  tensor_->start_sum(stream, p.dbc, inbox);
}

void Mixer::end_project(Stream& stream, const Projected& p, Known known) const {
  if (!known.xh_z && !projects_at_once()) linear_forward(stream, p.x, in_z_, p.z());
  if (!known.dbc) tensor_->finish_sum(stream);
  if (p.dbc_operand.dtype() != DType::f32) convert(stream, p.dbc, p.dbc_operand);
  linear_forward(stream, Matrix(p.dbc_operand).columns_of(0, R_), dt_proj_.value, p.dt);
}

ScanRecurrence Mixer::recurrence(const Projected& p, const Tensor& chunk_states, const Tensor& initial_state) const {
  return {.u = p.u,
          .dt = p.dt,
          .dt_bias = dt_bias_.value,
          .A_log = A_log_.value,
          .dbc = p.dbc,
          .initial = initial_state,
          .chunk_states = chunk_states};
}

void Mixer::gate(Stream& stream, const Projected& p, const Mixed& m) const {
  if (!dense_) return;
  linear_forward(stream, p.x, gate_fc1_.value, m.gate_input);
  silu_forward(stream, m.gate_input, m.gate_hidden);
  linear_forward(stream, m.gate_hidden, gate_fc2_.value, m.gate);
}

void Mixer::mix(Stream& stream, const Projected& p, const Tensor& chunk_states, const Carry& carry,
                std::span<const ScanRecurrence> sources, const Mixed& m) const {
  selective_scan_forward(stream, {.own = recurrence(p, chunk_states, carry.initial_state),
                                  .sources = sources,
                                  .gate = dense_ ? m.gate : Tensor(),
                                  .skip = skip_.value,
                                  .z = p.z(),
                                  .out = m.out,
                                  .final_state = carry.final_state});
}

void Mixer::output(Stream& stream, const Parts& parts, int i, const Mixed& m, const Tensor& out) const {
  linear_forward(stream, m.out, out_proj_.value, parts.of(out, i));
  tensor_->start_sum(stream, parts, out, i, 1);
}

Mixer::Cotangents Mixer::backward(Stream& stream, Arena& arena, const Parts& parts, const Tensor& small_inbox,
                                  const Tensor& dout, const Projected& p, const Mixed& m, const Tensor& chunk_states,
                                  std::span<const ScanRecurrence> sources, std::span<const ScanReader> readers,
                                  const Tensor& q, const Tensor& dx, Accumulate gradients) const {
  const Shape channels = p.u.shape();
  const DType compute = p.u.dtype();
  const auto scratch = [&](Shape shape, DType dtype) { return arena.allocate(shape, dtype, "backward scratch"); };
  // What is summed over the group, as an operand of products: itself, or its rounded copy.
  const auto operand = [&](const Tensor& sum) {
    if (sum.dtype() == compute) return sum;
    const Tensor rounded = scratch(sum.shape(), compute);
    convert(stream, sum, rounded);
    return rounded;
  };

  // out = mixed.out · out_projᵀ
  const Tensor dmixed = scratch(channels, compute);
  for (int i = 0; i < parts.count(); ++i) tensor_->finish(stream, i);
  linear_backward_input(stream, dout, out_proj_.value, dmixed, Accumulate::overwrite);

  // The scan. Cotangents of x_proj's output and of the gate's bottleneck share one buffer: they cross the group together,
  // in float32; where nobody else adds to them they are rounded as they are made.
  const std::int64_t tokens = p.dbc.rows(), small = R_ + 2 * N_, G = dense_ ? m.gate_input.size(-1) : 0;
  const DType sums = tensor_->ranks().size() == 1 ? compute : DType::f32;
  const Tensor crossing = scratch({tokens * (small + G)}, sums);
  const Tensor ddbc = crossing.flat(0, tokens * small).reshaped(p.dbc.shape());
  const Tensor du = scratch(channels, compute), ddt = scratch(channels, compute);
  const Tensor gate = dense_ ? m.gate : Tensor(), dgate = gate;  // in place
  const Tensor dxh_z = scratch(p.xh_z.shape(), compute);
  const Matrix dxh = Matrix(dxh_z).columns_of(0, channels[2]), dz = Matrix(dxh_z).columns_of(channels[2], channels[2]);
  selective_scan_backward(stream, {.own = recurrence(p, chunk_states, {}),
                                   .sources = sources,
                                   .readers = readers,
                                   .gate = gate,
                                   .skip = skip_.value,
                                   .z = p.z(),
                                   .dout = dmixed,
                                   .du = du,
                                   .ddt = ddt,
                                   .ddbc = ddbc,
                                   .dz = dz,
                                   .dgate = dgate,
                                   .q = dense_ ? q : Tensor(),
                                   .out = m.out,
                                   .dA_log = A_log_.gradient,
                                   .dskip = skip_.gradient,
                                   .ddt_bias = dt_bias_.gradient,
                                   .scratch = scratch({scan_backward_scratch(stream.device().kind, channels[0], channels[1],
                                                                             channels[2], N_, !sources.empty())},
                                                      DType::f32)});

  // dt = δ · dt_projᵀ and gate = silu(x · fc1ᵀ) · fc2ᵀ, cotangents of what other ranks too have a part in
  linear_backward_input(stream, ddt, dt_proj_.value, Matrix(ddbc).columns_of(0, R_), Accumulate::overwrite);
  Tensor dhidden;
  if (dense_) {
    dhidden = crossing.flat(tokens * small, tokens * G).reshaped(m.gate_hidden.shape());
    linear_backward_input(stream, dgate, gate_fc2_.value, dhidden, Accumulate::overwrite);
  }
  tensor_->start_sum(stream, crossing, small_inbox ? small_inbox.flat(0, crossing.numel()) : Tensor());

  // [xh | z] = x · in_projᵀ, from z while the sum is on the wire; without a sum it is one product, below
  const bool at_once = projects_at_once();
  if (!at_once) linear_backward_input(stream, dz, in_z_, dx, Accumulate::overwrite);
  tensor_->finish_sum(stream);

  // dbc = u · x_projᵀ, u = silu(conv(xh)), and xh
  const Tensor ddbc_operand = operand(ddbc);
  causal_conv_silu_backward(stream, du, {ddbc_operand, x_proj_.value}, p.xh(), conv_weight_.value, conv_bias_.value, dxh,
                            conv_weight_.gradient, conv_bias_.gradient);
  // The gate's fc1 is whole on every rank and so is its cotangent: a rank adds what comes through its share of the
  // bottleneck.
  Tensor dgate_input;
  if (dense_) {
    dgate_input = operand(dhidden);
    silu_backward(stream, m.gate_input, dgate_input, dgate_input);
  }
  const int rank = tensor_->ranks().rank(), ranks = tensor_->ranks().size();
  const std::int64_t share = G * rank / ranks, share_end = G * (rank + 1) / ranks;
  if (at_once) {
    linear_backward_input(stream, dxh_z, in_proj_.value, dx, Accumulate::overwrite);
  } else {
    linear_backward_input(stream, dxh, in_xh_, dx, Accumulate::add);
  }
  if (dense_) {
    const Matrix through = Matrix(dgate_input).columns_of(share, share_end - share);
    linear_backward_input(stream, through, gate_fc1_.value.slice(share, share_end - share), dx, Accumulate::add);
  }
  tensor_->start_sum(stream, parts, dx, 0, parts.count());
  linear_backward_weight(stream, dxh_z, p.x, in_proj_.gradient, gradients);
  return {.out = dout, .dt = ddt, .dbc = ddbc_operand, .gate = dgate, .gate_input = dgate_input};
}

void Mixer::backward_weights(Stream& stream, const Cotangents& d, const Projected& p, const Mixed& m,
                             Accumulate gradients) const {
  linear_backward_weight(stream, d.out, m.out, out_proj_.gradient, gradients);
  linear_backward_weight(stream, d.dt, Matrix(p.dbc_operand).columns_of(0, R_), dt_proj_.gradient, gradients);
  linear_backward_weight(stream, d.dbc, p.u, x_proj_.gradient, gradients);
  if (!dense_) return;
  linear_backward_weight(stream, d.gate, m.gate_hidden, gate_fc2_.gradient, gradients);
  linear_backward_weight(stream, d.gate_input, p.x, gate_fc1_.gradient, gradients);
}

}  // namespace dm
