// Small configurations, first values and batches for the tests of the model, and how far two results are apart.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "model/config.h"
#include "model/parameters.h"
#include "runtime/random.h"
#include "runtime/tensor.h"

namespace dm {

/// Widths at which padding matters: 48 channels leave 12 to each of four ranks, and of the 128 rows of the embedding the
/// last of four ranks has padding alone.
inline ModelConfig small_config(std::int64_t dense_depth, std::int64_t layers = 3) {
  ModelConfig config;
  config.layers = layers;
  config.d_model = 24;
  config.d_state = 4;
  config.dense_depth = dense_depth;
  config.vocabulary = 90;
  config.resolve();
  return config;
}

/// A model of that shape with the vocabulary of the public Mamba checkpoints.
inline ModelConfig sized(std::int64_t layers, std::int64_t d_model, std::int64_t dense_depth) {
  ModelConfig config;
  config.layers = layers;
  config.d_model = d_model;
  config.dense_depth = dense_depth;
  config.vocabulary = 50280;
  config.resolve();
  return config;
}

/// The model's parameters with first values under which every path of the model counts and every gradient is of a size to
/// be measured: projections that keep the size of what they project, time steps about one, open gates, skips that differ.
inline std::vector<ParameterSpec> open_specs(const ModelConfig& config) {
  std::vector<ParameterSpec> specs = parameter_specs(config);
  for (ParameterSpec& spec : specs) {
    const auto is = [&](const char* end) { return spec.name.ends_with(end); };
    if (is("proj.weight") || is("fc1.weight") || is("fc2.weight")) spec.init = {Initializer::Kind::uniform, 0.4f};
    if (is("mixer.D") || is("dt_proj.bias")) spec.init = {Initializer::Kind::uniform, 1.0f};
    if (is("embedding.weight")) spec.init = {Initializer::Kind::normal, 0.3f};
  }
  return specs;
}

/// Token sequences and their targets.
struct Batch {
  Shape shape;
  std::vector<std::int32_t> tokens, targets;

  static Batch random(std::uint64_t seed, std::int64_t sequences, std::int64_t length, std::int64_t vocabulary) {
    const RandomStream random(seed, "batch");
    const auto token = [&](std::int64_t i) {
      return static_cast<std::int32_t>(random.uniform(static_cast<std::uint64_t>(i)) * static_cast<float>(vocabulary));
    };
    Batch batch{.shape = {sequences, length}, .tokens = {}, .targets = {}};
    for (std::int64_t i = 0; i < batch.shape.numel(); ++i) batch.tokens.push_back(token(2 * i));
    for (std::int64_t i = 0; i < batch.shape.numel(); ++i) batch.targets.push_back(token(2 * i + 1));
    return batch;
  }

  Tensor token_tensor() const { return Tensor::of(const_cast<std::int32_t*>(tokens.data()), shape); }
  Tensor target_tensor() const { return Tensor::of(const_cast<std::int32_t*>(targets.data()), shape); }
};

/// ‖a − b‖ / ‖b‖, ‖a‖ when b is zero; infinite when a NaN is among them.
inline double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double error = 0, norm = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    error += (x - y) * (x - y);
    norm += y * y;
  }
  const double relative = std::sqrt(norm > 0 ? error / norm : error);
  return std::isnan(relative) ? std::numeric_limits<double>::infinity() : relative;
}

}  // namespace dm
