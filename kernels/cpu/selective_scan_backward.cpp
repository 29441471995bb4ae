// The selective scan backward on the CPU: chunk by chunk from the last, states recomputed from the chunk's start.
#include "kernels/cpu/scan_tile.h"
#include "kernels/selective_scan.h"

namespace dm::cpu {
namespace {

constexpr float kLn2 = 0.69314718056f;

inline void add_lanes(float* to, FloatLanes lanes) {
  store_lanes(to, load_lanes(to) + lanes);
}

/// Pairwise: the upper half onto the lower one, until one is left.
inline float sum_of_lanes(const float* from) {
  float lanes[kLanes];
  std::copy_n(from, kLanes, lanes);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

/// Scratch of one sequence. B̄ and C̄ are sums over all channels: each lane is summed over the channel blocks in their order,
/// then the lanes together.
class Scratch {
 public:
  static std::int64_t elements(std::int64_t tokens, std::int64_t states) {
    return (2 * scan_chunks(tokens) + 1) * states * kScanChunk * kLanes;
  }

  Scratch(const Tensor& scratch, std::int64_t tokens, std::int64_t states)
      : tokens_(tokens),
        states_(states),
        sums_(scratch.as<float>()),
        source_states_(sums_ + elements(tokens, states) - states * kScanChunk * kLanes) {}

  /// kLanes floats a token of the tile: B̄ and C̄ of state n, and Σ_s h^s of state n in the tile at work.
  float* dB(const Tile& tile, std::int64_t n) const { return sums(tile.token / kScanChunk, n); }
  float* dC(const Tile& tile, std::int64_t n) const { return sums(tile.token / kScanChunk, states_ + n); }
  float* source_states(std::int64_t n) const { return source_states_ + n * kScanChunk * kLanes; }

  void clear_sums() const { std::fill(sums_, source_states_, 0.0f); }
  void clear_source_states() const { std::fill_n(source_states_, states_ * kScanChunk * kLanes, 0.0f); }
  /// Writes the B and C columns of ddbc.
  void write_sums(const Tensor& ddbc, std::int64_t batch) const {
    const std::int64_t columns = ddbc.size(2), R = columns - 2 * states_;
    for (std::int64_t t = 0; t < tokens_; ++t) {
      float* row = ddbc.as<float>() + (batch * tokens_ + t) * columns + R;
      for (std::int64_t n = 0; n < 2 * states_; ++n) {
        row[n] = sum_of_lanes(sums(t / kScanChunk, n) + t % kScanChunk * kLanes);
      }
    }
  }

 private:
  float* sums(std::int64_t chunk, std::int64_t column) const {
    return sums_ + (chunk * 2 * states_ + column) * kScanChunk * kLanes;
  }

  std::int64_t tokens_, states_;
  float* sums_;
  float* source_states_;
};

/// What a tile's backward reads and makes, one tile after the other.
struct Workspace {
  Plane u, dy;                   ///< u, ȳ
  Plane gate, q;                 ///< silu(gate), ȳ silu(gate)
  Plane dz, dgate;               ///< dz and dgate but for their factors y and r
  Plane gating;                  ///< silu(z)
  Plane readout, dense_readout;  ///< e, r
  Plane dinput, dexponent;       ///< Σ_n λ B, Σ_n λ exp(ΔA) h_{t−1} rate
  Drive drive;
  Plane decay, before;  ///< exp(ΔA) and h_{t−1} of the state at work
  Plane reader_q[kMaxScanReaders];
};

/// One channel block of one sequence, taken chunk by chunk from the last to the first.
class BlockBackward {
 public:
  void start(const ScanBackwardArgs& args, const Tile& tile);
  void run(const ScanBackwardArgs& args, std::int64_t chunk, const Scratch& scratch, Workspace& w);
  /// Adds the gradients of the parameters, once all chunks have run.
  void finish(const ScanBackwardArgs& args) const;

 private:
  FloatLanes* source_rate(std::size_t s) { return rate_ + (static_cast<std::int64_t>(s) + 1) * states_; }

  void load(const ScanBackwardArgs& args, Workspace& w) const;
  void recompute_source(const ScanRecurrence& source, const FloatLanes* rate, const Scratch& scratch) const;
  template <bool dense>
  void recompute(const ScanBackwardArgs& args, std::int64_t n, const Scratch& scratch, Workspace& w) const;
  void sweep(const ScanBackwardArgs& args, std::int64_t n, const Scratch& scratch, Workspace& w);
  void write(const ScanBackwardArgs& args, Workspace& w);

  Tile tile_;
  std::int64_t states_;
  FloatLanes skip_, dskip_, dbias_;
  FloatLanes rate_[kMaxScanStates];   // the layer's own, then the sources'
  FloatLanes carry_[kMaxScanStates];  // exp(Δ_{t+1} A) λ_{t+1} at the tile's end
  FloatLanes drate_[kMaxScanStates];  // Σ_t Δ λ exp(ΔA) h_{t−1}
};

void BlockBackward::start(const ScanBackwardArgs& args, const Tile& tile) {
  tile_ = tile;
  states_ = args.own.A_log.size(1);
  skip_ = load_lanes(args.skip.as<float>() + tile.channel, tile.channels);
  dskip_ = dbias_ = FloatLanes{};
  load_rates(args.own, tile, rate_);
  for (std::size_t s = 0; s < args.sources.size(); ++s) load_rates(args.sources[s], tile, source_rate(s));
  std::fill_n(carry_, states_, FloatLanes{});
  std::fill_n(drate_, states_, FloatLanes{});
}

void BlockBackward::run(const ScanBackwardArgs& args, std::int64_t chunk, const Scratch& scratch, Workspace& w) {
  tile_.seek(chunk, args.own.u.size(1));
  load(args, w);
  if (args.sources.empty()) {
    for (std::int64_t n = 0; n < states_; ++n) {
      recompute<false>(args, n, scratch, w);
      sweep(args, n, scratch, w);
    }
  } else {
    scratch.clear_source_states();
    for (std::size_t s = 0; s < args.sources.size(); ++s) recompute_source(args.sources[s], source_rate(s), scratch);
    for (std::int64_t n = 0; n < states_; ++n) {
      recompute<true>(args, n, scratch, w);
      sweep(args, n, scratch, w);
    }
  }
  write(args, w);
}

void BlockBackward::load(const ScanBackwardArgs& args, Workspace& w) const {
  w.u.load(args.own.u, tile_);
  w.drive.load(args.own, tile_);
  w.dy.load(args.dout, tile_);
  w.dz.load(args.z, tile_);
  for (int t = 0; t < tile_.tokens; ++t) {
    const FloatLanes z = w.dz.at[t], dout = w.dy.at[t];
    w.dz.at[t] = dout * silu_derivative(z);
    w.gating.at[t] = silu(z);
    w.dy.at[t] = dout * w.gating.at[t];
  }
  for (std::size_t k = 0; k < args.readers.size(); ++k) w.reader_q[k].load(args.readers[k].q, tile_);
  for (Plane* sum : {&w.readout, &w.dense_readout, &w.dinput, &w.dexponent}) sum->clear(tile_);
  if (args.sources.empty()) return;
  w.gate.load(args.gate, tile_);
  for (int t = 0; t < tile_.tokens; ++t) {
    const FloatLanes gate = w.gate.at[t];
    w.dgate.at[t] = w.dy.at[t] * silu_derivative(gate);
    w.gate.at[t] = silu(gate);
    w.q.at[t] = w.dy.at[t] * w.gate.at[t];
  }
}

/// Adds the states of one source to the sum of the sources' states.
void BlockBackward::recompute_source(const ScanRecurrence& source, const FloatLanes* rate, const Scratch& scratch) const {
  Drive drive;
  drive.load(source, tile_);
  const Columns B = Columns::input(source.dbc, tile_, states_);
  const float* starts = tile_.in_chunk_states(source.chunk_states);
  for (std::int64_t n = 0; n < states_; ++n) {
    float* sum = scratch.source_states(n);
    run_state(drive, B, n, rate[n], load_state(starts, tile_, states_, n), tile_.tokens,
              [&](int t, FloatLanes, FloatLanes, FloatLanes next) { add_lanes(sum + t * kLanes, next); });
  }
}

/// The states of the tile from its start, with the readouts and C̄ = Σ_d (ȳ h + q Σ_s h^s).
template <bool dense>
void BlockBackward::recompute(const ScanBackwardArgs& args, std::int64_t n, const Scratch& scratch, Workspace& w) const {
  const Columns C = Columns::output(args.own.dbc, tile_, states_);
  const float* source_states = scratch.source_states(n);
  float* dC = scratch.dC(tile_, n);
  const FloatLanes start = load_state(tile_.in_chunk_states(args.own.chunk_states), tile_, states_, n);
  run_state(w.drive, Columns::input(args.own.dbc, tile_, states_), n, rate_[n], start, tile_.tokens,
            [&](int t, FloatLanes decay, FloatLanes before, FloatLanes next) {
              w.decay.at[t] = decay;
              w.before.at[t] = before;
              w.readout.at[t] += next * C(t, n);
              FloatLanes seen = w.dy.at[t] * next;
              if constexpr (dense) {
                const FloatLanes sum = load_lanes(source_states + t * kLanes);
                w.dense_readout.at[t] += sum * C(t, n);
                seen += w.q.at[t] * sum;
              }
              add_lanes(dC + t * kLanes, seen);
            });
}

/// The adjoint recurrence of state n, from the tile's end to its start.
void BlockBackward::sweep(const ScanBackwardArgs& args, std::int64_t n, const Scratch& scratch, Workspace& w) {
  const Columns B = Columns::input(args.own.dbc, tile_, states_), C = Columns::output(args.own.dbc, tile_, states_);
  Plane source;  // ȳ C + Σ_readers q C
  for (int t = 0; t < tile_.tokens; ++t) source.at[t] = w.dy.at[t] * C(t, n);
  for (std::size_t k = 0; k < args.readers.size(); ++k) {
    const Columns reader_C = Columns::output(args.readers[k].dbc, tile_, states_);
    for (int t = 0; t < tile_.tokens; ++t) source.at[t] += w.reader_q[k].at[t] * reader_C(t, n);
  }
  float* dB = scratch.dB(tile_, n);
  FloatLanes carry = carry_[n], drate = drate_[n];
  for (int t = tile_.tokens - 1; t >= 0; --t) {
    const FloatLanes lambda = carry + source.at[t];
    w.dinput.at[t] += lambda * B(t, n);
    add_lanes(dB + t * kLanes, lambda * w.drive.input.at[t]);
    carry = w.decay.at[t] * lambda;
    const FloatLanes slope = carry * w.before.at[t];
    w.dexponent.at[t] += slope * rate_[n];
    drate += slope * w.drive.delta.at[t];
  }
  carry_[n] = carry;
  drate_[n] = drate;
}

void BlockBackward::write(const ScanBackwardArgs& args, Workspace& w) {
  const FloatLanes bias = load_lanes(args.own.dt_bias.as<float>() + tile_.channel, tile_.channels);
  Plane du, ddt;
  ddt.load(args.own.dt, tile_);
  for (int t = 0; t < tile_.tokens; ++t) {
    const FloatLanes ddelta = w.dexponent.at[t] * kLn2 + w.u.at[t] * w.dinput.at[t];
    ddt.at[t] = ddelta * sigmoid(ddt.at[t] + bias);
    dbias_ += ddt.at[t];
    du.at[t] = skip_ * w.dy.at[t] + w.drive.delta.at[t] * w.dinput.at[t];
    dskip_ += w.dy.at[t] * w.u.at[t];
    w.readout.at[t] += skip_ * w.u.at[t];
  }
  ddt.store(args.ddt, tile_);
  du.store(args.du, tile_);
  if (!args.sources.empty()) {
    for (int t = 0; t < tile_.tokens; ++t) {
      w.readout.at[t] += w.gate.at[t] * w.dense_readout.at[t];
      w.dgate.at[t] *= w.dense_readout.at[t];
    }
    w.dgate.store(args.dgate, tile_);
    w.q.store(args.q, tile_);
  }
  for (int t = 0; t < tile_.tokens; ++t) {
    w.dz.at[t] *= w.readout.at[t];
    w.gating.at[t] *= w.readout.at[t];
  }
  w.dz.store(args.dz, tile_);
  if (args.out) w.gating.store(args.out, tile_);
}

void BlockBackward::finish(const ScanBackwardArgs& args) const {
  const auto add = [this](const Tensor& gradient, FloatLanes lanes) {
    float* at = gradient.as<float>() + tile_.channel;
    store_lanes(at, load_lanes(at, tile_.channels) + lanes, tile_.channels);
  };
  add(args.dskip, dskip_);
  add(args.ddt_bias, dbias_);
  float* dA_log = args.dA_log.as<float>() + tile_.channel * states_;
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
  const Scratch scratch(args.scratch, tokens, args.own.A_log.size(1));
  BlockBackward blocks[kBlockGroup];
  Workspace workspace;
  for (std::int64_t b = 0; b < batch; ++b) {
    scratch.clear_sums();
    for (std::int64_t channel = 0; channel < channels;) {
      int count = 0;
      for (; count < kBlockGroup && channel < channels; ++count, channel += kLanes) {
        blocks[count].start(args, Tile(b, channel, channels));
      }
      for (std::int64_t chunk = scan_chunks(tokens); chunk-- > 0;) {
        for (int i = 0; i < count; ++i) blocks[i].run(args, chunk, scratch, workspace);
      }
      for (int i = 0; i < count; ++i) blocks[i].finish(args);
    }
    scratch.write_sums(args.ddbc, b);
  }
}

}  // namespace dm::cpu
