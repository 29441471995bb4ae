// The selective scan forward on the CPU: a register of channels runs through time, its states in the first-level cache.
#include "kernels/selective_scan.h"

#include "kernels/cpu/scan_tile.h"

namespace dm::cpu {
namespace {

/// readout_t += h_t · C_t, with one state after the other through the tile: a state's recurrence is short against the
/// exponentials of the steps behind it, so the core overlaps them, and no count of states needs registers of its own.
void advance(const Drive& drive, const Columns& B, const Columns& C, std::int64_t states, const FloatLanes* rate,
             FloatLanes* state, int tokens, Plane& readout) {
  for (std::int64_t n = 0; n < states; ++n) {
    state[n] = run_state(drive, B, n, rate[n], state[n], tokens,
                         [&](int t, FloatLanes, FloatLanes, FloatLanes next) { readout.at[t] += next * C(t, n); });
  }
}

/// out = (e + silu(gate) ⊙ r + skip ⊙ u) ⊙ silu(z); `own` is e, `dense` is r.
void write_out(const ScanForwardArgs& args, const Tile& tile, Plane& own, const Plane& dense) {
  Plane factor;
  if (!args.sources.empty()) {
    factor.load(args.gate, tile);
    for (int t = 0; t < tile.tokens; ++t) own.at[t] += silu(factor.at[t]) * dense.at[t];
  }
  Plane u;
  u.load(args.own.u, tile);
  factor.load(args.z, tile);
  const FloatLanes skip = load_lanes(args.skip.as<float>() + tile.channel, tile.channels);
  for (int t = 0; t < tile.tokens; ++t) own.at[t] = (own.at[t] + skip * u.at[t]) * silu(factor.at[t]);
  own.store(args.out, tile);
}

/// One channel block of one sequence, taken chunk by chunk from the first to the last.
class BlockForward {
 public:
  void start(const ScanForwardArgs& args, const Tile& tile);
  void run(const ScanForwardArgs& args, std::int64_t chunk);
  void finish(const ScanForwardArgs& args) const {
    if (args.final_state) save(tile_.in_states(args.final_state));
  }

 private:
  void start(const ScanRecurrence& recurrence, FloatLanes* rate, FloatLanes* state) const;
  void save(float* rows) const {
    for (std::int64_t n = 0; n < states_; ++n) store_state(rows, tile_, states_, n, state_[n]);
  }

  Tile tile_;
  std::int64_t states_;
  // The layer's own, then the sources': states_ entries each.
  FloatLanes rate_[kMaxScanStates];
  FloatLanes state_[kMaxScanStates];
};

void BlockForward::start(const ScanForwardArgs& args, const Tile& tile) {
  tile_ = tile;
  states_ = args.own.A_log.size(1);
  start(args.own, rate_, state_);
  for (std::size_t s = 0; s < args.sources.size(); ++s) {
    const std::int64_t at = (static_cast<std::int64_t>(s) + 1) * states_;
    start(args.sources[s], rate_ + at, state_ + at);
  }
}

void BlockForward::start(const ScanRecurrence& recurrence, FloatLanes* rate, FloatLanes* state) const {
  load_rates(recurrence, tile_, rate);
  for (std::int64_t n = 0; n < states_; ++n) {
    state[n] = recurrence.initial ? load_state(tile_.in_states(recurrence.initial), tile_, states_, n) : FloatLanes{};
  }
}

void BlockForward::run(const ScanForwardArgs& args, std::int64_t chunk) {
  tile_.seek(chunk, args.own.u.size(1));
  if (args.own.chunk_states) save(tile_.in_chunk_states(args.own.chunk_states));
  const Columns C = Columns::output(args.own.dbc, tile_, states_);
  Drive drive;
  Plane own, dense;
  drive.load(args.own, tile_);
  own.clear(tile_);
  advance(drive, Columns::input(args.own.dbc, tile_, states_), C, states_, rate_, state_, tile_.tokens, own);
  dense.clear(tile_);
  for (std::size_t s = 0; s < args.sources.size(); ++s) {
    const std::int64_t at = (static_cast<std::int64_t>(s) + 1) * states_;
    drive.load(args.sources[s], tile_);
    advance(drive, Columns::input(args.sources[s].dbc, tile_, states_), C, states_, rate_ + at, state_ + at, tile_.tokens,
            dense);
  }
  write_out(args, tile_, own, dense);
}

}  // namespace

void selective_scan_forward(Stream&, const ScanForwardArgs& args) {
  const std::int64_t batch = args.own.u.size(0), tokens = args.own.u.size(1), channels = args.own.u.size(2);
  BlockForward blocks[kBlockGroup];
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t channel = 0; channel < channels;) {
      int count = 0;
      for (; count < kBlockGroup && channel < channels; ++count, channel += kLanes) {
        blocks[count].start(args, Tile(b, channel, channels));
      }
      for (std::int64_t chunk = 0; chunk < scan_chunks(tokens); ++chunk) {
        for (int i = 0; i < count; ++i) blocks[i].run(args, chunk);
      }
      for (int i = 0; i < count; ++i) blocks[i].finish(args);
    }
  }
}

}  // namespace dm::cpu
