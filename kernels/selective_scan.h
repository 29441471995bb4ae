// The selective scan with the dense hidden readout, gate and skip: all of a DenseMamba mixer between its projections.
#pragma once

#include <span>

#include "kernels/matrix.h"
#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

/// Axis letters: B batch, T time, D channels of this rank, N states a channel, R dt rank. All activations of a call have one
/// compute dtype: float32 on the CPU, float32 or bfloat16 on CUDA.
///
/// One layer's recurrence (Gu & Dao, "Mamba", arXiv 2312.00752, eq. 2 with the simplified Euler input):
///   Δ_t = softplus(dt_t + dt_bias);  A = −exp(A_log);  h_t = exp(Δ_t A) ⊙ h_{t−1} + (Δ_t u_t) ⊗ B_t
/// Everything it needs to be run again by a layer above, which is how a dense readout reads its states: h is never stored.
struct ScanRecurrence {
  Tensor u;             ///< [B, T, D] compute dtype.
  Tensor dt;            ///< [B, T, D] compute dtype: output of dt_proj before bias and softplus.
  Tensor dt_bias;       ///< [D] f32.
  Tensor A_log;         ///< [D, N] f32.
  Tensor dbc;           ///< [B, T, R+2N] f32: columns δ (R), B (N), C (N).
  Tensor initial;       ///< [B, D, N] f32, the state before the first token; absent means zero.
  Tensor chunk_states;  ///< As `scan_states` says: states that forward saves and backward starts again from.
};

/// What `chunk_states` of a recurrence is: the state before each chunk of tokens, laid out as the device likes it.
struct ScanStates {
  Shape shape;
  DType dtype;
};
/// On the CPU [B, scan_chunks(T), D, N] float32: 4·N / kScanChunk bytes a channel and token. On CUDA every 8 tokens, N
/// rounded up to 16 and in the compute dtype: 2·N / 8 bytes a channel and token in bfloat16 (their rounding is seen by eight
/// steps only).
ScanStates scan_states(DeviceKind device, DType compute, std::int64_t batch, std::int64_t tokens, std::int64_t channels,
                       std::int64_t states);

/// The CPU's chunk: tokens between two saved states.
inline constexpr int kScanChunk = 32;
constexpr std::int64_t scan_chunks(std::int64_t tokens) {
  return (tokens + kScanChunk - 1) / kScanChunk;
}

/// The most states that one call advances a channel, N · (1 + sources), and the most readers of a backward. A GPU counts N
/// rounded up to 16, and refuses more readers than its shared memory has room for: 7 in float32, 10 in bfloat16.
inline constexpr std::int64_t kMaxScanStates = 512;
inline constexpr std::int64_t kMaxScanReaders = 64;

/// e_t = h_t · C_t;  r_t = Σ_s h^s_t · C_t over the sources;  y_t = e_t + silu(gate_t) ⊙ r_t + skip ⊙ u_t;
/// out_t = y_t ⊙ silu(z_t)   (He et al., "DenseMamba", arXiv 2403.00818: raw lower states, this layer's C, fusion by
/// addition).
struct ScanForwardArgs {
  ScanRecurrence own;  ///< chunk_states may be absent (inference): then nothing is saved.
  std::span<const ScanRecurrence>
      sources;         ///< The dense layers below, in any fixed order; their chunk_states are unused here.
  Tensor gate;         ///< [B, T, D] before its silu; present exactly when there are sources.
  Tensor skip;         ///< [D] f32, Mamba's D.
  Matrix z;            ///< [B·T, D] with any row stride, before its silu.
  Tensor out;          ///< [B, T, D], overwritten; may alias z where that is one.
  Tensor final_state;  ///< [B, D, N] f32, state after the last token; may be absent, may alias own.initial.
};

/// States, Δ and sums in float32; on CUDA in bfloat16, Δ is good to 6e-5, Δu ⊗ B and h · C multiply factors of 11 bits
/// (states are good to 3e-4). With no sources it computes plain Mamba with the same bits whatever the dense depth of the
/// model. Allocates nothing. Same bits every run.
using ScanForwardOp = void(Stream& stream, const ScanForwardArgs& args);
ScanForwardOp selective_scan_forward;

/// A layer above that read this layer's states: it adds the rank-one cotangent q_t ⊗ C_t to h_t.
struct ScanReader {
  Tensor q;    ///< [B, T, D]: written by that reader's own backward.
  Tensor dbc;  ///< [B, T, R+2N] f32 of the reader; its C columns are read.
};

/// Bars are cotangents; `dout` is out's. out itself comes back as y ⊙ silu(z), so that nobody need keep it from forward.
///   ȳ = dout ⊙ silu(z);  dz = dout ⊙ y ⊙ silu'(z);  dskip += Σ ȳ ⊙ u;  dgate = ȳ ⊙ r ⊙ silu'(gate);  q = ȳ ⊙ silu(gate)
///   C̄_t = Σ_d (ȳ_t h_t + q_t Σ_s h^s_t)
///   λ_t = ȳ_t ⊗ C_t + Σ_readers q^k_t ⊗ C^k_t + exp(Δ_{t+1} A) ⊙ λ_{t+1}
///   du = skip ⊙ ȳ + Δ ⊙ (λ B);  B̄_t = Σ_d Δ_t u_t λ_t
///   Δ̄_t = Σ_n λ_t (A ⊙ exp(Δ_t A) ⊙ h_{t−1} + u_t B_t);  ddt = Δ̄ ⊙ sigmoid(dt + dt_bias);  ddt_bias += Σ ddt
///   dA_log += A ⊙ Σ_t Δ_t ⊙ λ_t ⊙ exp(Δ_t A) ⊙ h_{t−1}
/// States of this layer and of the sources are recomputed from their chunk_states; y and r with them.
struct ScanBackwardArgs {
  ScanRecurrence own;
  std::span<const ScanRecurrence> sources;
  std::span<const ScanReader> readers;
  Tensor gate;  ///< As in forward; present exactly when there are sources.
  Tensor skip;
  Matrix z;
  Tensor dout;  ///< [B, T, D].

  Tensor du;        ///< [B, T, D], overwritten: the scan's part only; x_proj's part is added by the layer.
  Tensor ddt;       ///< [B, T, D], overwritten.
  Tensor ddbc;      ///< [B, T, R+2N] f32 or the compute dtype: B and C columns overwritten with this rank's sums over d,
                    ///< made in float32 (CUDA, bfloat16: of sums of 64 channels with 11 bits); δ columns left alone.
  Matrix dz;        ///< [B·T, D] with any row stride, overwritten; may be z itself.
  Tensor dgate;     ///< [B, T, D], overwritten; present exactly when there are sources; may alias gate.
  Tensor q;         ///< [B, T, D], overwritten; present exactly when there are sources.
  Tensor out;       ///< [B, T, D], overwritten: forward's out again, up to rounding; may be absent, may alias dout, not z.
  Tensor dA_log;    ///< [D, N] f32, accumulated.
  Tensor dskip;     ///< [D] f32, accumulated.
  Tensor ddt_bias;  ///< [D] f32, accumulated.
  Tensor scratch;   ///< f32, at least scan_backward_scratch elements; contents undefined before and after.
};

/// float32 elements of scratch that the backward of a layer with or without `sources` needs on a device.
std::int64_t scan_backward_scratch(DeviceKind device, std::int64_t batch, std::int64_t tokens, std::int64_t channels,
                                   std::int64_t states, bool sources);

/// For sequences whose initial state is zero (own.initial and the sources' are ignored: chunk_states hold every start).
/// Sums over channels and over time in a fixed order: same bits every run.
using ScanBackwardOp = void(Stream& stream, const ScanBackwardArgs& args);
ScanBackwardOp selective_scan_backward;

namespace cpu {
ScanForwardOp selective_scan_forward;
ScanBackwardOp selective_scan_backward;
std::int64_t scan_backward_scratch(std::int64_t batch, std::int64_t tokens, std::int64_t channels, std::int64_t states);
}  // namespace cpu
namespace cuda {
ScanForwardOp selective_scan_forward;
ScanBackwardOp selective_scan_backward;
}  // namespace cuda

}  // namespace dm
