// The checks of the selective scan and of its backward.
#include "kernels/selective_scan.h"

#include "kernels/check.h"
#include "kernels/cuda/scan_layout.h"
#include "kernels/dispatch.h"

namespace dm {
namespace {

/// The extents of a call, from its own recurrence.
struct Extents {
  std::int64_t B, T, D, N, columns;  ///< columns: R + 2N
  DType compute;

  Extents(const ArgumentCheck& check, const ScanRecurrence& own) {
    check.that(own.u.shape().rank() == 3, "u must be [batch, tokens, channels]");
    check.that(own.A_log.shape().rank() == 2 && own.A_log.size(1) > 0, "A_log must be [channels, states]");
    check.that(own.dbc.shape().rank() == 3 && own.dbc.size(2) >= 2 * own.A_log.size(1),
               "dbc must be [batch, tokens, dt rank + 2 states]");
    B = own.u.size(0), T = own.u.size(1), D = own.u.size(2), N = own.A_log.size(1), columns = own.dbc.size(2);
    compute = own.u.dtype();
  }

  Shape activations() const { return {B, T, D}; }
  Shape projections() const { return {B, T, columns}; }
  Shape states() const { return {B, D, N}; }
};

void check_recurrence(const ArgumentCheck& check, const ScanRecurrence& recurrence, const Extents& extents) {
  check.compute("u", recurrence.u, extents.activations());
  check.tensor("dt", recurrence.dt, extents.activations(), extents.compute);
  check.tensor("dt_bias", recurrence.dt_bias, Shape{extents.D}, DType::f32);
  check.tensor("A_log", recurrence.A_log, Shape{extents.D, extents.N}, DType::f32);
  check.tensor("dbc", recurrence.dbc, extents.projections(), DType::f32);
}

void check_saved_states(const ArgumentCheck& check, const Stream& stream, const ScanRecurrence& recurrence,
                        const Extents& extents) {
  const ScanStates saved = scan_states(stream.device().kind, extents.compute, extents.B, extents.T, extents.D, extents.N);
  check.tensor("chunk_states", recurrence.chunk_states, saved.shape, saved.dtype);
}

/// What forward and backward share besides the recurrences.
template <class Args>
void check_gating(const ArgumentCheck& check, const Args& args, const Extents& extents) {
  const auto sources = static_cast<std::int64_t>(args.sources.size());
  check.that((1 + sources) * extents.N <= kMaxScanStates, "more than 512 states a channel in this layer and its sources");
  check.that(static_cast<bool>(args.gate) == (sources > 0), "gate must be present exactly when there are sources");
  if (args.gate) check.tensor("gate", args.gate, extents.activations(), extents.compute);
  check.tensor("skip", args.skip, Shape{extents.D}, DType::f32);
  check.matrix("z", args.z, extents.B * extents.T, extents.D, extents.compute);
}

}  // namespace

void selective_scan_forward(Stream& stream, const ScanForwardArgs& args) {
  const ArgumentCheck check(stream, "selective_scan_forward"), check_own(stream, "selective_scan_forward: own"),
      check_source(stream, "selective_scan_forward: a source");
  const Extents extents(check_own, args.own);
  const auto check_start = [&](const ArgumentCheck& check, const ScanRecurrence& recurrence) {
    check_recurrence(check, recurrence, extents);
    if (recurrence.initial) check.tensor("initial", recurrence.initial, extents.states(), DType::f32);
  };
  check_start(check_own, args.own);
  for (const ScanRecurrence& source : args.sources) check_start(check_source, source);
  check_gating(check, args, extents);
  if (args.own.chunk_states) {
    check_saved_states(check_own, stream, args.own, extents);
  }
  check.tensor("out", args.out, extents.activations(), extents.compute);
  if (args.final_state) check.tensor("final_state", args.final_state, extents.states(), DType::f32);
  dispatch(stream, "selective_scan_forward", DM_TWINS(selective_scan_forward), args);
}

ScanStates scan_states(DeviceKind device, DType compute, std::int64_t batch, std::int64_t tokens, std::int64_t channels,
                       std::int64_t states) {
  if (device == DeviceKind::cpu) return {{batch, scan_chunks(tokens), channels, states}, DType::f32};
  namespace layout = cuda::scan;
  return {{batch, layout::saved_of(tokens), layout::slices_of(states), channels * layout::kStates}, compute};
}

std::int64_t scan_backward_scratch(DeviceKind device, std::int64_t batch, std::int64_t tokens, std::int64_t channels,
                                   std::int64_t states, bool sources) {
  if (device == DeviceKind::cpu) return cpu::scan_backward_scratch(batch, tokens, channels, states);
  return cuda::scan::BackwardScratch(batch, tokens, channels, states, sources).total;
}

void selective_scan_backward(Stream& stream, const ScanBackwardArgs& args) {
  const ArgumentCheck check(stream, "selective_scan_backward"), check_own(stream, "selective_scan_backward: own"),
      check_source(stream, "selective_scan_backward: a source"), check_reader(stream, "selective_scan_backward: a reader");
  const Extents extents(check_own, args.own);
  const auto check_saved = [&](const ArgumentCheck& check, const ScanRecurrence& recurrence) {
    check_recurrence(check, recurrence, extents);
    check_saved_states(check, stream, recurrence, extents);
  };
  check_saved(check_own, args.own);
  for (const ScanRecurrence& source : args.sources) check_saved(check_source, source);
  check.that(static_cast<std::int64_t>(args.readers.size()) <= kMaxScanReaders, "more than 64 readers");
  for (const ScanReader& reader : args.readers) {
    check_reader.tensor("q", reader.q, extents.activations(), extents.compute);
    check_reader.tensor("dbc", reader.dbc, extents.projections(), DType::f32);
  }
  check_gating(check, args, extents);
  check.tensor("dout", args.dout, extents.activations(), extents.compute);
  check.tensor("du", args.du, extents.activations(), extents.compute);
  check.tensor("ddt", args.ddt, extents.activations(), extents.compute);
  check.tensor("ddbc", args.ddbc, extents.projections(), args.ddbc.dtype() == DType::f32 ? DType::f32 : extents.compute);
  check.matrix("dz", args.dz, extents.B * extents.T, extents.D, extents.compute);
  if (args.sources.empty()) {
    check.that(!args.dgate && !args.q, "dgate and q must be present exactly when there are sources");
  } else {
    check.tensor("dgate", args.dgate, extents.activations(), extents.compute);
    check.tensor("q", args.q, extents.activations(), extents.compute);
  }
  if (args.out) check.tensor("out", args.out, extents.activations(), extents.compute);
  check.tensor("dA_log", args.dA_log, Shape{extents.D, extents.N}, DType::f32);
  check.tensor("dskip", args.dskip, Shape{extents.D}, DType::f32);
  check.tensor("ddt_bias", args.ddt_bias, Shape{extents.D}, DType::f32);
  const std::int64_t needed =
      scan_backward_scratch(stream.device().kind, extents.B, extents.T, extents.D, extents.N, !args.sources.empty());
  check.that(args.scratch && args.scratch.numel() >= needed, "scratch is smaller than scan_backward_scratch says");
  check.elements("scratch", args.scratch, args.scratch.numel(), DType::f32);
  dispatch(stream, "selective_scan_backward", DM_TWINS(selective_scan_backward), args);
}

}  // namespace dm
