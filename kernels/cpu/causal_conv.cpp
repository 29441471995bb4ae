// The causal convolution on the CPU: tiles of channels run through time, so every input is read from memory once.
#include "kernels/causal_conv.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/vector_math.h"

namespace dm::cpu {
namespace {

/// Channels of a tile: rows of 1 KiB, and everything a step reads stays in the first-level cache.
constexpr std::int64_t kTile = 256;

constexpr float kZeros[kTile] = {};

/// Channels [first, first + channels) of weight and bias with the taps outermost, so that loops over channels are
/// unit-stride.
template <int Taps>
struct Filter {
  float weight[Taps][kTile];
  float bias[kTile];

  Filter(const Tensor& all_weights, const Tensor& all_biases, std::int64_t first, std::int64_t channels) {
    for (std::int64_t c = 0; c < channels; ++c) {
      for (int tap = 0; tap < Taps; ++tap) weight[tap][c] = all_weights.as<float>()[(first + c) * Taps + tap];
      bias[c] = all_biases.as<float>()[first + c];
    }
  }

  /// pre = bias + Σ_w weight[w] ⊙ inputs[w]
  void apply(const float* const (&inputs)[Taps], std::int64_t channels, float* __restrict pre) const {
    for (std::int64_t c = 0; c < channels; ++c) {
      float sum = bias[c];
      for (int tap = 0; tap < Taps; ++tap) sum += weight[tap][c] * inputs[tap][c];
      pre[c] = sum;
    }
  }
};

/// The rows that the taps of one token read, oldest first; `next` moves on by one token.
template <int Taps>
struct Window {
  const float* rows[Taps];

  void next(const float* row) {
    for (int tap = 0; tap + 1 < Taps; ++tap) rows[tap] = rows[tap + 1];
    rows[Taps - 1] = row;
  }
};

/// history [W−1, D] := the last W−1 rows of (history, x).
void advance_history(float* history, std::int64_t kept, const float* x, std::int64_t tokens, std::int64_t channels) {
  const std::int64_t fresh = std::min(kept, tokens);
  const auto bytes = [channels](std::int64_t rows) { return static_cast<std::size_t>(rows * channels) * sizeof(float); };
  std::memmove(history, history + fresh * channels, bytes(kept - fresh));
  std::memcpy(history + (kept - fresh) * channels, x + (tokens - fresh) * channels, bytes(fresh));
}

template <int Taps>
void forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& history, const Tensor& out) {
  const std::int64_t batch = x.size(0), tokens = x.size(1), width = x.size(2);
  for (std::int64_t first = 0; first < width; first += kTile) {
    const std::int64_t channels = std::min(kTile, width - first);
    const Filter<Taps> filter(weight, bias, first, channels);
    for (std::int64_t b = 0; b < batch; ++b) {
      Window<Taps> window;
      for (int tap = 1; tap < Taps; ++tap) {
        window.rows[tap] = history ? history.as<float>() + (b * (Taps - 1) + tap - 1) * width + first : kZeros;
      }
      for (std::int64_t t = 0; t < tokens; ++t) {
        window.next(x.as<float>() + (b * tokens + t) * width + first);
        float* y = out.as<float>() + (b * tokens + t) * width + first;
        float pre[kTile];
        filter.apply(window.rows, channels, pre);
        for (std::int64_t c = 0; c < channels; ++c) y[c] = silu(pre[c]);
      }
    }
  }
  if (!history) return;
  for (std::int64_t b = 0; b < batch; ++b) {
    advance_history(history.as<float>() + b * (Taps - 1) * width, Taps - 1, x.as<float>() + b * tokens * width, tokens,
                    width);
  }
}

/// dx_t = Σ_w weight[w] ⊙ p̄_{t+W−1−w}; `later` holds p̄_t … p̄_{t+W−1}.
template <int Taps>
void input_gradient(const Filter<Taps>& filter, const Window<Taps>& later, std::int64_t channels, float* __restrict dx) {
  for (std::int64_t c = 0; c < channels; ++c) {
    float sum = 0;
    for (int tap = 0; tap < Taps; ++tap) sum += filter.weight[tap][c] * later.rows[Taps - 1 - tap][c];
    dx[c] = sum;
  }
}

/// The gradient sums of one tile over one sequence.
template <int Taps>
struct FilterGradient {
  float weight[Taps][kTile] = {};
  float bias[kTile] = {};

  void add(const float* __restrict dpre, const float* const (&inputs)[Taps], std::int64_t channels) {
    for (std::int64_t c = 0; c < channels; ++c) {
      bias[c] += dpre[c];
      for (int tap = 0; tap < Taps; ++tap) weight[tap][c] += dpre[c] * inputs[tap][c];
    }
  }

  void add_to(float* dweight, float* dbias, std::int64_t channels) const {
    for (std::int64_t c = 0; c < channels; ++c) {
      for (int tap = 0; tap < Taps; ++tap) dweight[c * Taps + tap] += weight[tap][c];
      dbias[c] += bias[c];
    }
  }
};

/// One sequence, one tile: every pointer at the tile's first channel, rows `width` apart.
template <int Taps>
void backward_sequence(const Filter<Taps>& filter, const float* dout, const float* x, std::int64_t tokens,
                       std::int64_t width, std::int64_t channels, float* dx, FilterGradient<Taps>& gradient) {
  float dpre[Taps][kTile];  // p̄ of the last Taps tokens, a ring over t
  Window<Taps> inputs, later;
  std::fill_n(inputs.rows, Taps, kZeros);
  std::fill_n(later.rows, Taps, kZeros);
  for (std::int64_t t = 0; t < tokens + Taps - 1; ++t) {
    if (t < tokens) {
      inputs.next(x + t * width);
      float* p = dpre[t % Taps];
      filter.apply(inputs.rows, channels, p);
      const float* dy = dout + t * width;
      for (std::int64_t c = 0; c < channels; ++c) p[c] = dy[c] * silu_derivative(p[c]);
      gradient.add(p, inputs.rows, channels);
      later.next(p);
    } else {
      later.next(kZeros);
    }
    if (t >= Taps - 1) input_gradient(filter, later, channels, dx + (t - Taps + 1) * width);
  }
}

template <int Taps>
void backward(const Tensor& dout, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& dx,
              const Tensor& dweight, const Tensor& dbias) {
  const std::int64_t batch = x.size(0), tokens = x.size(1), width = x.size(2);
  for (std::int64_t first = 0; first < width; first += kTile) {
    const std::int64_t channels = std::min(kTile, width - first);
    const Filter<Taps> filter(weight, bias, first, channels);
    for (std::int64_t b = 0; b < batch; ++b) {
      FilterGradient<Taps> gradient;
      const std::int64_t at = b * tokens * width + first;
      backward_sequence(filter, dout.as<float>() + at, x.as<float>() + at, tokens, width, channels, dx.as<float>() + at,
                        gradient);
      gradient.add_to(dweight.as<float>() + first * Taps, dbias.as<float>() + first, channels);
    }
  }
}

/// Calls run with std::integral_constant<int, taps>.
template <class Run>
void with_taps(std::int64_t taps, const Run& run) {
  switch (taps) {
    case 2:
      return run(std::integral_constant<int, 2>());
    case 3:
      return run(std::integral_constant<int, 3>());
    case 4:
      return run(std::integral_constant<int, 4>());
    case 5:
      return run(std::integral_constant<int, 5>());
    case 6:
      return run(std::integral_constant<int, 6>());
    case 7:
      return run(std::integral_constant<int, 7>());
    case 8:
      return run(std::integral_constant<int, 8>());
  }
  fail("a causal convolution of " + std::to_string(taps) + " taps");
}

}  // namespace

void causal_conv_silu_forward(Stream&, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& history,
                              const Tensor& out) {
  with_taps(weight.size(1), [&](auto taps) { forward<taps()>(x, weight, bias, history, out); });
}

void causal_conv_silu_backward(Stream&, const Tensor& dout, const Tensor& x, const Tensor& weight, const Tensor& bias,
                               const Tensor& dx, const Tensor& dweight, const Tensor& dbias) {
  with_taps(weight.size(1), [&](auto taps) { backward<taps()>(dout, x, weight, bias, dx, dweight, dbias); });
}

}  // namespace dm::cpu
