// The parameter list, in the order of the forward pass.
#include "model/parameters.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include <fmt/format.h>

namespace dm {
namespace {

using Kind = Initializer::Kind;
constexpr Shard kWhole{};
constexpr Shard kRows{Shard::Axis::rows, 1};
constexpr Shard kTwoRowHalves{Shard::Axis::rows, 2};
constexpr Shard kColumns{Shard::Axis::columns, 1};

/// PyTorch's default for a linear layer: U(±1 / sqrt(fan_in)).
Initializer linear_init(std::int64_t fan_in) {
  return {Kind::uniform, 1.0f / std::sqrt(static_cast<float>(fan_in))};
}

void add_layer(std::vector<ParameterSpec>& specs, const ModelConfig& config, std::int64_t layer) {
  const std::int64_t C = config.d_model, D = config.d_inner(), N = config.d_state, R = config.dt_rank;
  const std::int64_t W = config.d_conv, G = config.gate_rank;
  const int block = static_cast<int>(layer) + 1, small = small_block(config);
  const std::string mixer = mixer_prefix(layer);
  // A residual branch shrinks with the depth: 1 / sqrt(L) on out_proj (Mamba's initialisation, after GPT-2's).
  const Initializer out_init{Kind::uniform, linear_init(D).scale / std::sqrt(static_cast<float>(config.layers))};

  specs.push_back({fmt::format("backbone.layers.{}.norm.weight", layer), {C}, kWhole, {Kind::constant, 1}, false, small});
  specs.push_back({mixer + "in_proj.weight", {2 * D, C}, kTwoRowHalves, linear_init(C), true, block});
  specs.push_back({mixer + "conv1d.weight", {D, 1, W}, kRows, linear_init(W), true, small});
  specs.push_back({mixer + "conv1d.bias", {D}, kRows, linear_init(W), false, small});
  specs.push_back({mixer + "x_proj.weight", {R + 2 * N, D}, kColumns, linear_init(D), true, block});
  specs.push_back({mixer + "dt_proj.weight", {D, R}, kRows, linear_init(R), true, block});
  specs.push_back({mixer + "dt_proj.bias", {D}, kRows, {Kind::dt_bias, 0}, false, small});
  specs.push_back({mixer + "A_log", {D, N}, kRows, {Kind::log_state, 0}, false, small});
  specs.push_back({mixer + "D", {D}, kRows, {Kind::constant, 1}, false, small});
  if (config.sources_of(layer) > 0) {
    specs.push_back({mixer + "dense_gate.fc1.weight", {G, C}, kWhole, linear_init(C), true, block});
    specs.push_back({mixer + "dense_gate.fc2.weight", {D, G}, kRows, {Kind::constant, 0}, true, block});
  }
  specs.push_back({mixer + "out_proj.weight", {C, D}, kColumns, out_init, true, block});
}

}  // namespace

std::string mixer_prefix(std::int64_t layer) {
  return fmt::format("backbone.layers.{}.mixer.", layer);
}

std::vector<ParameterSpec> parameter_specs(const ModelConfig& config) {
  std::vector<ParameterSpec> specs;
  specs.push_back(
      {"backbone.embedding.weight", {config.padded_vocabulary(), config.d_model}, kRows, {Kind::normal, 0.02f}, true, 0});
  for (std::int64_t layer = 0; layer < config.layers; ++layer) add_layer(specs, config, layer);
  specs.push_back({"backbone.norm_f.weight", {config.d_model}, kWhole, {Kind::constant, 1}, false, small_block(config)});
  // Alike lie together, so that an update or a norm takes few passes over a block.
  const auto kind = [](const ParameterSpec& spec) {
    return std::tuple(spec.block, spec.decay, spec.shard.axis != Shard::Axis::none);
  };
  std::stable_sort(specs.begin(), specs.end(), [&](const auto& a, const auto& b) { return kind(a) < kind(b); });
  return specs;
}

}  // namespace dm
