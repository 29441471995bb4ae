// The causal convolution on the CPU: a register of channels runs through a few tokens, so each input is loaded once for all
// taps; registers run along a tile of channels, tiles through time.
#include "kernels/causal_conv.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/vector_math.h"
#include "kernels/matmul.h"

namespace dm::cpu {
namespace {

/// Channels of a tile: runs of 2 KiB, and its filter and gradient sums stay in the first-level cache.
constexpr std::int64_t kTile = 512;
/// Tokens that a register of channels runs through before its right neighbour follows.
constexpr std::int64_t kBlock = 8;

template <class V>
V load(const float* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
template <class V>
void store(float* to, V value) {
  std::memcpy(to, &value, sizeof value);
}

/// Calls run(c, V()) for registers of channels c, c + 1, … of a tile: FloatLanes, then floats for what is left.
template <class Run>
void for_each_register(std::int64_t channels, const Run& run) {
  std::int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) run(c, FloatLanes());
  for (; c < channels; ++c) run(c, 0.0f);
}

/// Weight and bias, or their gradient sums, of a tile with the taps outermost: channels are contiguous.
template <int Taps>
struct Filter {
  float weight[Taps][kTile];
  float bias[kTile];

  /// At the tile's first channel.
  void load(const float* weights, const float* biases, std::int64_t channels) {
    for (std::int64_t c = 0; c < channels; ++c) {
      for (int tap = 0; tap < Taps; ++tap) weight[tap][c] = weights[c * Taps + tap];
      bias[c] = biases[c];
    }
  }
  void clear() { *this = {}; }
  void add_to(float* weights, float* biases, std::int64_t channels) const {
    for (std::int64_t c = 0; c < channels; ++c) {
      for (int tap = 0; tap < Taps; ++tap) weights[c * Taps + tap] += weight[tap][c];
      biases[c] += bias[c];
    }
  }
};

/// A register of a filter.
template <class V, int Taps>
struct Column {
  V weight[Taps];
  V bias;

  Column(const Filter<Taps>& filter, std::int64_t c) {
    for (int tap = 0; tap < Taps; ++tap) weight[tap] = load<V>(&filter.weight[tap][c]);
    bias = load<V>(&filter.bias[c]);
  }
  void store_to(Filter<Taps>& filter, std::int64_t c) const {
    for (int tap = 0; tap < Taps; ++tap) store(&filter.weight[tap][c], weight[tap]);
    store(&filter.bias[c], bias);
  }
};

/// The last Taps values of a sequence, oldest first.
template <class V, int Taps>
struct Window {
  V at[Taps] = {};

  void push(V value) {
    for (int i = 0; i + 1 < Taps; ++i) at[i] = at[i + 1];
    at[Taps - 1] = value;
  }
};

/// bias + Σ_w weight[w] ⊙ inputs[w]
template <class V, int Taps>
V convolve(const Column<V, Taps>& filter, const Window<V, Taps>& inputs) {
  V sum = filter.bias;
  for (int tap = 0; tap < Taps; ++tap) sum += filter.weight[tap] * inputs.at[tap];
  return sum;
}

/// One sequence at a tile's first channel: rows `stride` apart. Rows −W+1 … −1 are those of `history`, `width` apart, or
/// zero without one.
struct Sequence {
  const float* x;
  std::int64_t stride;
  const float* history;
  std::int64_t width;

  template <class V, int Taps>
  Window<V, Taps> before(std::int64_t token, std::int64_t c) const {
    Window<V, Taps> window;
    for (std::int64_t t = token - Taps + 1; t < token; ++t) {
      const float* row = t >= 0 ? x + t * stride : history ? history + (t + Taps - 1) * width : nullptr;
      window.push(row ? load<V>(row + c) : V());
    }
    return window;
  }
};

template <int Taps>
void forward_tile(const Filter<Taps>& filter, const Sequence& sequence, std::int64_t tokens, std::int64_t channels,
                  float* out) {
  for (std::int64_t begin = 0; begin < tokens; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, tokens);
    for_each_register(channels, [&](std::int64_t c, auto lanes) {
      using V = decltype(lanes);
      const Column<V, Taps> column(filter, c);
      auto inputs = sequence.before<V, Taps>(begin, c);
      for (std::int64_t t = begin; t < end; ++t) {
        inputs.push(load<V>(sequence.x + t * sequence.stride + c));
        store(out + t * sequence.width + c, silu(convolve(column, inputs)));
      }
    });
  }
}

/// p̄_t goes into row t of dx and is replaced by dx_t = Σ_w weight[:, w] p̄_{t+W−1−w} once the last p̄ it needs is known.
template <int Taps>
void backward_tile(const Filter<Taps>& filter, const Sequence& sequence, const float* dout, std::int64_t tokens,
                   std::int64_t channels, float* dx, std::int64_t stride, Filter<Taps>& gradient) {
  const std::int64_t width = sequence.width;
  for (std::int64_t begin = 0; begin < tokens; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, tokens);
    for_each_register(channels, [&](std::int64_t c, auto lanes) {
      using V = decltype(lanes);
      const Column<V, Taps> column(filter, c);
      Column<V, Taps> sums(gradient, c);
      auto inputs = sequence.before<V, Taps>(begin, c);
      auto later = Sequence{dx, stride, nullptr, width}.template before<V, Taps>(begin, c);  // p̄ of the last Taps tokens
      const auto finish = [&](std::int64_t t) {  // dx_t, p̄_t being the oldest of `later`
        if (t < 0) return;
        V sum = {};
        for (int tap = 0; tap < Taps; ++tap) sum += column.weight[tap] * later.at[Taps - 1 - tap];
        store(dx + t * stride + c, sum);
      };
      for (std::int64_t t = begin; t < end; ++t) {
        inputs.push(load<V>(sequence.x + t * sequence.stride + c));
        const V dpre = load<V>(dout + t * width + c) * silu_derivative(convolve(column, inputs));
        sums.bias += dpre;
        for (int tap = 0; tap < Taps; ++tap) sums.weight[tap] += dpre * inputs.at[tap];
        later.push(dpre);
        finish(t - Taps + 1);
      }
      sums.store_to(gradient, c);
      if (end < tokens) {
        for (std::int64_t t = std::max<std::int64_t>(end - Taps + 1, 0); t < end; ++t) {
          store(dx + t * stride + c, later.at[t - end + Taps]);
        }
      } else {
        for (std::int64_t t = end - Taps + 1; t < end; ++t) {
          later.push(V());
          finish(t);
        }
      }
    });
  }
}

/// history [W−1, D] := the last W−1 rows of (history, x).
void advance_history(float* history, std::int64_t kept, const float* x, std::int64_t stride, std::int64_t tokens,
                     std::int64_t channels) {
  const std::int64_t fresh = std::min(kept, tokens);
  const auto bytes = [channels](std::int64_t rows) { return static_cast<std::size_t>(rows * channels) * sizeof(float); };
  std::memmove(history, history + fresh * channels, bytes(kept - fresh));
  for (std::int64_t row = 0; row < fresh; ++row) {
    std::memcpy(history + (kept - fresh + row) * channels, x + (tokens - fresh + row) * stride, bytes(1));
  }
}

template <int Taps>
void forward(const Matrix& x, const Tensor& weight, const Tensor& bias, const Tensor& history, const Tensor& out) {
  const std::int64_t batch = out.size(0), tokens = out.size(1), width = out.size(2), stride = x.row_stride;
  Filter<Taps> filter;
  for (std::int64_t first = 0; first < width; first += kTile) {
    const std::int64_t channels = std::min(kTile, width - first);
    filter.load(weight.as<float>() + first * Taps, bias.as<float>() + first, channels);
    for (std::int64_t b = 0; b < batch; ++b) {
      const float* before = history ? history.as<float>() + b * (Taps - 1) * width + first : nullptr;
      const Sequence sequence{x.as<float>() + b * tokens * stride + first, stride, before, width};
      forward_tile(filter, sequence, tokens, channels, out.as<float>() + b * tokens * width + first);
    }
  }
  if (!history) return;
  for (std::int64_t b = 0; b < batch; ++b) {
    advance_history(history.as<float>() + b * (Taps - 1) * width, Taps - 1, x.as<float>() + b * tokens * stride, stride,
                    tokens, width);
  }
}

template <int Taps>
void backward(const Tensor& dout, const Matrix& x, const Tensor& weight, const Tensor& bias, const Matrix& dx,
              const Tensor& dweight, const Tensor& dbias) {
  const std::int64_t batch = dout.size(0), tokens = dout.size(1), width = dout.size(2);
  Filter<Taps> filter, gradient;
  for (std::int64_t first = 0; first < width; first += kTile) {
    const std::int64_t channels = std::min(kTile, width - first);
    filter.load(weight.as<float>() + first * Taps, bias.as<float>() + first, channels);
    for (std::int64_t b = 0; b < batch; ++b) {
      const auto at = [&](std::int64_t stride) { return b * tokens * stride + first; };
      gradient.clear();
      backward_tile(filter, {x.as<float>() + at(x.row_stride), x.row_stride, nullptr, width}, dout.as<float>() + at(width),
                    tokens, channels, dx.as<float>() + at(dx.row_stride), dx.row_stride, gradient);
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

void causal_conv_silu_forward(Stream&, const Matrix& x, const Tensor& weight, const Tensor& bias, const Tensor& history,
                              const Tensor& out) {
  with_taps(weight.size(1), [&](auto taps) { forward<taps()>(x, weight, bias, history, out); });
}

void causal_conv_silu_backward(Stream& stream, const Tensor& dout, const OutputProjection& projection, const Matrix& x,
                               const Tensor& weight, const Tensor& bias, const Matrix& dx, const Tensor& dweight,
                               const Tensor& dbias) {
  if (projection.dy) {
    cpu::matmul(stream, projection.dy, Transpose::no, projection.weight, Transpose::no, dout, Accumulate::add);
  }
  with_taps(weight.size(1), [&](auto taps) { backward<taps()>(dout, x, weight, bias, dx, dweight, dbias); });
}

}  // namespace dm::cpu
