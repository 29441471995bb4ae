// Tiles of the selective scan on the CPU: one register of channels by one chunk of tokens, and a recurrence run over one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/vector_math.h"
#include "kernels/selective_scan.h"

namespace dm::cpu {

inline FloatLanes load_lanes(const float* from) {
  FloatLanes lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
/// The first `count` lanes from memory, the others zero.
inline FloatLanes load_lanes(const float* from, int count) {
  float lanes[kLanes] = {};
  std::copy_n(from, count, lanes);
  return load_lanes(lanes);
}
inline void store_lanes(float* to, FloatLanes lanes, int count = kLanes) {
  std::memcpy(to, &lanes, static_cast<std::size_t>(count) * sizeof(float));
}

/// Channel blocks that go through a chunk one after the other before any goes on to the next: what they read and write of a
/// token is contiguous, so they share its memory page.
inline constexpr int kBlockGroup = 8;

/// Channels [channel, channel + channels) and tokens [token, token + tokens) of sequence `batch`.
struct Tile {
  std::int64_t batch = 0;
  std::int64_t channel = 0;
  int channels = 0;  ///< Up to kLanes: fewer at the end of the channels.
  std::int64_t token = 0;
  int tokens = 0;  ///< Up to kScanChunk: fewer at the end of the sequence.
  std::int64_t all_tokens = 0;

  Tile() = default;
  Tile(std::int64_t batch, std::int64_t channel, std::int64_t all_channels)
      : batch(batch), channel(channel), channels(static_cast<int>(std::min<std::int64_t>(kLanes, all_channels - channel))) {}
  /// Moves to chunk number `chunk` of a sequence of `length`.
  void seek(std::int64_t chunk, std::int64_t length) {
    token = chunk * kScanChunk;
    tokens = static_cast<int>(std::min<std::int64_t>(kScanChunk, length - token));
    all_tokens = length;
  }

  /// Element (first token, first channel) of a [B·T, D] matrix.
  float* in(const Matrix& matrix) const {
    return matrix.as<float>() + (batch * all_tokens + token) * matrix.row_stride + channel;
  }
  /// Element (batch, first channel, 0) of a [B, D, N] tensor.
  float* in_states(const Tensor& states) const {
    return states.as<float>() + (batch * states.size(1) + channel) * states.size(2);
  }
  /// Element (batch, this chunk, first channel, 0) of a [B, S, D, N] tensor.
  float* in_chunk_states(const Tensor& states) const {
    const std::int64_t chunk = batch * states.size(1) + token / kScanChunk;
    return states.as<float>() + (chunk * states.size(2) + channel) * states.size(3);
  }
};

/// One number a token and channel of a tile. Lanes of absent channels hold harmless finite numbers.
struct Plane {
  FloatLanes at[kScanChunk];

  void load(const Matrix& matrix, const Tile& tile) {
    const float* from = tile.in(matrix);
    const std::int64_t stride = matrix.row_stride;
    if (tile.channels == kLanes) {
      for (int t = 0; t < tile.tokens; ++t) at[t] = load_lanes(from + t * stride);
    } else {
      for (int t = 0; t < tile.tokens; ++t) at[t] = load_lanes(from + t * stride, tile.channels);
    }
  }
  void store(const Matrix& matrix, const Tile& tile) const {
    float* to = tile.in(matrix);
    const std::int64_t stride = matrix.row_stride;
    if (tile.channels == kLanes) {
      for (int t = 0; t < tile.tokens; ++t) store_lanes(to + t * stride, at[t]);
    } else {
      for (int t = 0; t < tile.tokens; ++t) store_lanes(to + t * stride, at[t], tile.channels);
    }
  }
  void clear(const Tile& tile) { std::fill_n(at, tile.tokens, FloatLanes{}); }
};

/// The B or C columns of a dbc tensor from a tile's first token on: one number a token and state, the same in all lanes.
struct Columns {
  const float* first;
  std::int64_t stride;

  static Columns input(const Tensor& dbc, const Tile& tile, std::int64_t states) { return {dbc, tile, 2 * states}; }
  static Columns output(const Tensor& dbc, const Tile& tile, std::int64_t states) { return {dbc, tile, states}; }

  float operator()(int token, std::int64_t state) const { return first[token * stride + state]; }

 private:
  Columns(const Tensor& dbc, const Tile& tile, std::int64_t from_the_end)
      : first(dbc.as<float>() + (tile.batch * dbc.size(1) + tile.token + 1) * dbc.size(2) - from_the_end),
        stride(dbc.size(2)) {}
};

/// What drives a recurrence through a tile: Δ and Δ ⊙ u.
struct Drive {
  Plane delta;
  Plane input;

  void load(const ScanRecurrence& recurrence, const Tile& tile) {
    delta.load(recurrence.dt, tile);
    input.load(recurrence.u, tile);
    const FloatLanes bias = load_lanes(recurrence.dt_bias.as<float>() + tile.channel, tile.channels);
    for (int t = 0; t < tile.tokens; ++t) {
      delta.at[t] = softplus(delta.at[t] + bias);
      input.at[t] *= delta.at[t];
    }
  }
};

/// Column n of the tile's rows of a [channels, states] matrix; `rows` is at the tile's first channel. And back.
inline FloatLanes load_state(const float* rows, const Tile& tile, std::int64_t states, std::int64_t n) {
  float column[kLanes] = {};
  for (int c = 0; c < tile.channels; ++c) column[c] = rows[c * states + n];
  return load_lanes(column);
}
inline void store_state(float* rows, const Tile& tile, std::int64_t states, std::int64_t n, FloatLanes lanes) {
  float column[kLanes];
  store_lanes(column, lanes);
  for (int c = 0; c < tile.channels; ++c) rows[c * states + n] = column[c];
}

/// rates[n] = A log2(e) = −exp(A_log) log2(e), so that the decay is 2^(Δ rate).
inline void load_rates(const ScanRecurrence& recurrence, const Tile& tile, FloatLanes* rates) {
  const std::int64_t states = recurrence.A_log.size(1);
  const float* rows = recurrence.A_log.as<float>() + tile.channel * states;
  for (std::int64_t n = 0; n < states; ++n) rates[n] = exp(load_state(rows, tile, states, n)) * -kLog2E;
}

/// Runs state n through a tile: h_t = a_t h_{t−1} + Δ_t u_t B_t with a_t = 2^(Δ_t rate). Calls visit(t, a_t, h_{t−1}, h_t)
/// for each token and returns the last state.
template <class Visit>
[[gnu::always_inline]] inline FloatLanes run_state(const Drive& drive, const Columns& B, std::int64_t n, FloatLanes rate,
                                                   FloatLanes state, int tokens, const Visit& visit) {
  for (int t = 0; t < tokens; ++t) {
    const FloatLanes decay = exp2_nonpositive(drive.delta.at[t] * rate);
    const FloatLanes next = decay * state + drive.input.at[t] * B(t, n);
    visit(t, decay, state, next);
    state = next;
  }
  return state;
}

}  // namespace dm::cpu
