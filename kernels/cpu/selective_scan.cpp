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

/// A channel block of one sequence from the first token to the last.
void forward_block(const ScanForwardArgs& args, Tile tile) {
  const std::int64_t tokens = args.own.u.size(1), N = args.own.A_log.size(1);
  // The layer's own recurrence, then the sources': N entries each.
  FloatLanes rates[kMaxScanStates], states[kMaxScanStates];
  const auto start = [&](const ScanRecurrence& recurrence, std::int64_t at) {
    load_rates(recurrence, tile, rates + at);
    for (std::int64_t n = 0; n < N; ++n) {
      states[at + n] = recurrence.initial ? load_state(tile.in_states(recurrence.initial), tile, N, n) : FloatLanes{};
    }
  };
  start(args.own, 0);
  for (std::size_t s = 0; s < args.sources.size(); ++s) start(args.sources[s], (static_cast<std::int64_t>(s) + 1) * N);

  // The layer's own states as rows of a [channels, N] matrix.
  const auto save = [&](float* rows) {
    for (std::int64_t n = 0; n < N; ++n) store_state(rows, tile, N, n, states[n]);
  };

  for (std::int64_t chunk = 0; chunk < scan_chunks(tokens); ++chunk) {
    tile.seek(chunk, tokens);
    if (args.own.chunk_states) save(tile.in_chunk_states(args.own.chunk_states));
    const Columns C = Columns::output(args.own.dbc, tile, N);
    Drive drive;
    const auto run = [&](const ScanRecurrence& recurrence, std::int64_t at, Plane& readout) {
      drive.load(recurrence, tile);
      advance(drive, Columns::input(recurrence.dbc, tile, N), C, N, rates + at, states + at, tile.tokens, readout);
    };
    Plane own, dense;
    own.clear(tile);
    dense.clear(tile);
    run(args.own, 0, own);
    for (std::size_t s = 0; s < args.sources.size(); ++s) {
      run(args.sources[s], (static_cast<std::int64_t>(s) + 1) * N, dense);
    }
    write_out(args, tile, own, dense);
  }
  if (args.final_state) save(tile.in_states(args.final_state));
}

}  // namespace

void selective_scan_forward(Stream&, const ScanForwardArgs& args) {
  const std::int64_t batch = args.own.u.size(0), channels = args.own.u.size(2);
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t channel = 0; channel < channels; channel += kLanes) forward_block(args, Tile(b, channel, channels));
  }
}

}  // namespace dm::cpu
