// Derived sizes, checks, and the counts that follow from a model's shape.
#include "model/config.h"

#include <algorithm>

#include <fmt/format.h>

#include "kernels/selective_scan.h"
#include "runtime/error.h"

namespace dm {
namespace {

void check_range(std::string_view option, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value < low || value > high) {
    fail(fmt::format("--model.{} is {}; it must lie between {} and {}", option, value, low, high), ExitCode::usage);
  }
}

}  // namespace

void ModelConfig::resolve() {
  check_range("layers", layers, 1, 4096);
  check_range("d_model", d_model, 1, 1 << 20);
  check_range("expand", expand, 1, 16);
  check_range("d_state", d_state, 1, 256);
  check_range("d_conv", d_conv, 2, 8);
  check_range("dense_depth", dense_depth, 0, layers);
  if (dt_rank == 0) dt_rank = (d_model + 15) / 16;
  if (gate_rank == 0) gate_rank = std::max<std::int64_t>(8, d_model / 32);
  check_range("dt_rank", dt_rank, 1, d_inner());
  check_range("gate_rank", gate_rank, 1, d_inner());
  check_range("vocabulary", vocabulary, 1, std::int64_t{1} << 24);
  const std::int64_t most_sources = sources_of(layers - 1);
  if (d_state * (1 + most_sources) > kMaxScanStates || most_sources > kMaxScanReaders) {
    fail(fmt::format("--model.dense_depth {} with --model.d_state {} advances {} states a channel; at most {} are possible, "
                     "and {} layers below",
                     dense_depth, d_state, d_state * (1 + most_sources), kMaxScanStates, kMaxScanReaders),
         ExitCode::usage);
  }
}

std::int64_t ModelConfig::parameters() const {
  const std::int64_t C = d_model, D = d_inner(), N = d_state, R = dt_rank, W = d_conv, G = gate_rank;
  const std::int64_t mixer = 2 * D * C + D * W + D + (R + 2 * N) * D + D * R + D + D * N + D + C * D;
  const std::int64_t gates = dense_depth > 0 ? (layers - 1) * (G * C + D * G) : 0;
  return vocabulary * C + C + layers * (C + mixer) + gates;
}

double ModelConfig::training_flops_per_token() const {
  const auto C = static_cast<double>(d_model), D = static_cast<double>(d_inner()), N = static_cast<double>(d_state);
  const auto R = static_cast<double>(dt_rank), W = static_cast<double>(d_conv), G = static_cast<double>(gate_rank);
  double forward = 2 * C * static_cast<double>(vocabulary);
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    forward += 2 * C * 2 * D + 2 * W * D + 2 * D * (R + 2 * N) + 2 * R * D + 9 * D * N + 5 * D + 2 * D * C;
    if (const std::int64_t sources = sources_of(layer); sources > 0) {
      forward += 2 * G * (C + D) + 8 * D * N * static_cast<double>(sources);
    }
  }
  return 3 * forward;
}

}  // namespace dm
