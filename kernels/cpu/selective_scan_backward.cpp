// The selective scan backward on the CPU: chunk by chunk from the last, states recomputed from the chunk's start.
#include "kernels/cpu/scan_tile.h"
#include "kernels/selective_scan.h"

namespace dm::cpu {
namespace {

/// Sums over channels are kept in four parts: parts are added lane by lane from block to block, and together at the end.
constexpr int kParts = 4;
using Parts [[gnu::vector_size(4 * kParts)]] = float;

inline Parts fold(FloatLanes lanes) {
#if defined(__AVX512F__)
  using Half [[gnu::vector_size(32)]] = float;
  const Half half = __builtin_shufflevector(lanes, lanes, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(lanes, lanes, 8, 9, 10, 11, 12, 13, 14, 15);
#else
  const FloatLanes half = lanes;
#endif
#if defined(__AVX__)
  return __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
#else
  return half;
#endif
}

/// Scratch of one sequence: the parts of B̄ and C̄, and the sources' summed states in a tile.
class Scratch {
 public:
  static std::int64_t elements(std::int64_t tokens, std::int64_t states) {
    return 2 * states * scan_chunks(tokens) * kScanChunk * kParts + states * kScanChunk * kLanes;
  }

  Scratch(const Tensor& scratch, std::int64_t tokens, std::int64_t states)
      : tokens_(tokens),
        states_(states),
        sums_(scratch.as<float>()),
        dense_(sums_ + elements(tokens, states) - states * kScanChunk * kLanes) {}

  void clear() { std::fill_n(sums_, dense_ - sums_, 0.0f); }

  /// kParts floats a token of the chunk that a tile is in.
  float* input_sums(const Tile& tile, std::int64_t n) const { return sums(tile.token / kScanChunk, n); }
  float* output_sums(const Tile& tile, std::int64_t n) const { return sums(tile.token / kScanChunk, states_ + n); }
  /// kLanes floats a token of a tile.
  float* dense(std::int64_t n) const { return dense_ + n * kScanChunk * kLanes; }

  /// Writes the B and C columns of ddbc.
  void write_sums(const Tensor& ddbc, std::int64_t batch) const {
    const std::int64_t columns = ddbc.size(2), R = columns - 2 * states_;
    for (std::int64_t t = 0; t < tokens_; ++t) {
      float* row = ddbc.as<float>() + (batch * tokens_ + t) * columns + R;
      for (std::int64_t n = 0; n < 2 * states_; ++n) {
        const float* part = sums(t / kScanChunk, n) + t % kScanChunk * kParts;
        row[n] = (part[0] + part[1]) + (part[2] + part[3]);
      }
    }
  }

 private:
  float* sums(std::int64_t chunk, std::int64_t column) const {
    return sums_ + (chunk * 2 * states_ + column) * kScanChunk * kParts;
  }

  std::int64_t tokens_, states_;
  float* sums_;
  float* dense_;
};

inline constexpr float kLn2 = 0.69314718056f;

inline void add_folded(float* sums, int token, FloatLanes lanes) {
  Parts parts;
  std::memcpy(&parts, sums + token * kParts, sizeof parts);
  parts += fold(lanes);
  std::memcpy(sums + token * kParts, &parts, sizeof parts);
}

/// One channel block of one sequence, taken chunk by chunk from the last to the first.
class BlockBackward {
 public:
  BlockBackward(const ScanBackwardArgs& args, const Tile& tile, const Scratch& scratch)
      : args_(args),
        scratch_(scratch),
        tile_(tile),
        states_(args.own.A_log.size(1)),
        skip_(load_lanes(args.skip.as<float>() + tile.channel, tile.channels)) {
    load_rates(args.own, tile, rate_);
    for (std::size_t s = 0; s < args.sources.size(); ++s) load_rates(args.sources[s], tile, source_rate(s));
    std::fill_n(carry_, states_, FloatLanes{});
    std::fill_n(drate_, states_, FloatLanes{});
  }

  void run(std::int64_t chunk) {
    tile_.seek(chunk, args_.own.u.size(1));
    load();
    for (std::size_t s = 0; s < args_.sources.size(); ++s) recompute_source(s);
    for (std::int64_t n = 0; n < states_; ++n) {
      args_.sources.empty() ? recompute<false>(n) : recompute<true>(n);
      sweep(n);
    }
    write();
  }

  /// Adds the gradients of the parameters, once all chunks have run.
  void finish() const;

 private:
  FloatLanes* source_rate(std::size_t s) { return rate_ + (static_cast<std::int64_t>(s) + 1) * states_; }

  void load();
  void recompute_source(std::size_t s);
  template <bool dense>
  void recompute(std::int64_t n);
  void sweep(std::int64_t n);
  void write();

  const ScanBackwardArgs& args_;
  const Scratch& scratch_;
  Tile tile_;
  std::int64_t states_;

  FloatLanes skip_;
  FloatLanes rate_[kMaxScanStates];   // the layer's own, then the sources'
  FloatLanes carry_[kMaxScanStates];  // exp(Δ_{t+1} A) λ_{t+1} at the tile's end
  FloatLanes drate_[kMaxScanStates];  // Σ_t Δ λ exp(ΔA) h_{t−1}
  FloatLanes dskip_ = {}, dbias_ = {};

  Plane u_, dy_;                   // u, ȳ
  Plane gate_, q_;                 // silu(gate), ȳ silu(gate)
  Plane dz_, dgate_;               // dz and dgate but for their factors y and r
  Plane readout_, dense_readout_;  // e, r
  Plane dinput_, dexponent_;       // Σ_n λ B, Σ_n λ exp(ΔA) h_{t−1} rate
  Drive drive_;
  Plane decay_, before_;  // exp(ΔA) and h_{t−1} of the state at work
  Plane reader_q_[kMaxScanReaders];
};

void BlockBackward::load() {
  u_.load(args_.own.u, tile_);
  drive_.load(args_.own, tile_);
  dy_.load(args_.dout, tile_);
  dz_.load(args_.z, tile_);
  for (int t = 0; t < tile_.tokens; ++t) {
    const FloatLanes z = dz_.at[t], dout = dy_.at[t];
    dz_.at[t] = dout * silu_derivative(z);
    dy_.at[t] = dout * silu(z);
  }
  for (std::size_t k = 0; k < args_.readers.size(); ++k) reader_q_[k].load(args_.readers[k].q, tile_);
  for (Plane* sum : {&readout_, &dense_readout_, &dinput_, &dexponent_}) sum->clear(tile_);
  if (args_.sources.empty()) return;
  gate_.load(args_.gate, tile_);
  for (int t = 0; t < tile_.tokens; ++t) {
    const FloatLanes gate = gate_.at[t];
    dgate_.at[t] = dy_.at[t] * silu_derivative(gate);
    gate_.at[t] = silu(gate);
    q_.at[t] = dy_.at[t] * gate_.at[t];
  }
}

/// Adds the states of source s to the sum of the sources' states.
void BlockBackward::recompute_source(std::size_t s) {
  const ScanRecurrence& source = args_.sources[s];
  Drive drive;
  drive.load(source, tile_);
  const Columns B = Columns::input(source.dbc, tile_, states_);
  const float* starts = tile_.in_chunk_states(source.chunk_states);
  for (std::int64_t n = 0; n < states_; ++n) {
    float* sum = scratch_.dense(n);
    if (s == 0) std::fill_n(sum, tile_.tokens * kLanes, 0.0f);
    run_state(drive, B, n, source_rate(s)[n], load_state(starts, tile_, states_, n), tile_.tokens,
              [&](int t, FloatLanes, FloatLanes, FloatLanes next) {
                store_lanes(sum + t * kLanes, load_lanes(sum + t * kLanes) + next);
              });
  }
}

/// The states of the tile from its start, with the readouts and C̄ = Σ_d (ȳ h + q Σ_s h^s).
template <bool dense>
void BlockBackward::recompute(std::int64_t n) {
  const Columns C = Columns::output(args_.own.dbc, tile_, states_);
  const float* source_states = scratch_.dense(n);
  float* doutput = scratch_.output_sums(tile_, n);
  const FloatLanes start = load_state(tile_.in_chunk_states(args_.own.chunk_states), tile_, states_, n);
  run_state(drive_, Columns::input(args_.own.dbc, tile_, states_), n, rate_[n], start, tile_.tokens,
            [&](int t, FloatLanes decay, FloatLanes before, FloatLanes next) {
              decay_.at[t] = decay;
              before_.at[t] = before;
              readout_.at[t] += next * C(t, n);
              FloatLanes seen = dy_.at[t] * next;
              if constexpr (dense) {
                const FloatLanes sum = load_lanes(source_states + t * kLanes);
                dense_readout_.at[t] += sum * C(t, n);
                seen += q_.at[t] * sum;
              }
              add_folded(doutput, t, seen);
            });
}

/// The adjoint recurrence of state n, from the tile's end to its start.
void BlockBackward::sweep(std::int64_t n) {
  const Columns B = Columns::input(args_.own.dbc, tile_, states_), C = Columns::output(args_.own.dbc, tile_, states_);
  Plane source;  // ȳ C + Σ_readers q C
  for (int t = 0; t < tile_.tokens; ++t) source.at[t] = dy_.at[t] * C(t, n);
  for (std::size_t k = 0; k < args_.readers.size(); ++k) {
    const Columns reader_C = Columns::output(args_.readers[k].dbc, tile_, states_);
    for (int t = 0; t < tile_.tokens; ++t) source.at[t] += reader_q_[k].at[t] * reader_C(t, n);
  }
  float* dB = scratch_.input_sums(tile_, n);
  FloatLanes carry = carry_[n], drate = drate_[n];
  for (int t = tile_.tokens - 1; t >= 0; --t) {
    const FloatLanes lambda = carry + source.at[t];
    dinput_.at[t] += lambda * B(t, n);
    add_folded(dB, t, lambda * drive_.input.at[t]);
    carry = decay_.at[t] * lambda;
    const FloatLanes slope = carry * before_.at[t];
    dexponent_.at[t] += slope * rate_[n];
    drate += slope * drive_.delta.at[t];
  }
  carry_[n] = carry;
  drate_[n] = drate;
}

void BlockBackward::write() {
  const FloatLanes bias = load_lanes(args_.own.dt_bias.as<float>() + tile_.channel, tile_.channels);
  Plane du, ddt;
  ddt.load(args_.own.dt, tile_);
  for (int t = 0; t < tile_.tokens; ++t) {
    const FloatLanes ddelta = dexponent_.at[t] * kLn2 + u_.at[t] * dinput_.at[t];
    ddt.at[t] = ddelta * sigmoid(ddt.at[t] + bias);
    dbias_ += ddt.at[t];
    du.at[t] = skip_ * dy_.at[t] + drive_.delta.at[t] * dinput_.at[t];
    dskip_ += dy_.at[t] * u_.at[t];
    readout_.at[t] += skip_ * u_.at[t];
  }
  ddt.store(args_.ddt, tile_);
  du.store(args_.du, tile_);
  if (!args_.sources.empty()) {
    for (int t = 0; t < tile_.tokens; ++t) {
      readout_.at[t] += gate_.at[t] * dense_readout_.at[t];
      dgate_.at[t] *= dense_readout_.at[t];
    }
    dgate_.store(args_.dgate, tile_);
    q_.store(args_.q, tile_);
  }
  for (int t = 0; t < tile_.tokens; ++t) dz_.at[t] *= readout_.at[t];
  dz_.store(args_.dz, tile_);
}

void BlockBackward::finish() const {
  const auto add = [this](const Tensor& gradient, FloatLanes lanes) {
    float* at = gradient.as<float>() + tile_.channel;
    store_lanes(at, load_lanes(at, tile_.channels) + lanes, tile_.channels);
  };
  add(args_.dskip, dskip_);
  add(args_.ddt_bias, dbias_);
  float* dA_log = args_.dA_log.as<float>() + tile_.channel * states_;
  for (std::int64_t n = 0; n < states_; ++n) {
    const FloatLanes A = rate_[n] * kLn2;
    store_state(dA_log, tile_, states_, n, load_state(dA_log, tile_, states_, n) + A * drate_[n]);
  }
}

}  // namespace

std::int64_t scan_backward_scratch(std::int64_t, std::int64_t tokens, std::int64_t, std::int64_t states) {
  return Scratch::elements(tokens, states);
}
void selective_scan_backward(Stream&, const ScanBackwardArgs& args) {
  const std::int64_t batch = args.own.u.size(0), tokens = args.own.u.size(1), channels = args.own.u.size(2);
  Scratch scratch(args.scratch, tokens, args.own.A_log.size(1));
  for (std::int64_t b = 0; b < batch; ++b) {
    scratch.clear();
    for (std::int64_t channel = 0; channel < channels; channel += kLanes) {
      BlockBackward block(args, Tile(b, channel, channels), scratch);
      for (std::int64_t chunk = scan_chunks(tokens); chunk-- > 0;) block.run(chunk);
      block.finish();
    }
    scratch.write_sums(args.ddbc, b);
  }
}

}  // namespace dm::cpu
