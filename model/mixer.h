// The DenseMamba mixer of one layer: projections, scan with dense readout, output; forward and backward.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/matmul.h"
#include "kernels/selective_scan.h"
#include "model/config.h"
#include "model/parameter_store.h"
#include "model/tensor_group.h"
#include "runtime/arena.h"
#include "runtime/stream.h"

namespace dm {

/// Batch, time and what a rank holds of the channels: the sizes of every activation.
struct ActivationShape {
  std::int64_t batch = 0;
  std::int64_t tokens = 0;          ///< [T] of one sequence.
  std::int64_t local_channels = 0;  ///< D / tensor ranks.
  DType compute = DType::f32;       ///< Of activations: f32, or bf16 on GPUs.
  DeviceKind device = DeviceKind::cpu;

  std::int64_t rows() const { return batch * tokens; }
};

/// Channels are cut over the tensor group; three sums over it make the function that of one rank: the small float32 one of
/// x_proj's output between `begin_project` and `end_project`, its backward counterpart, and that of the rows [.., C] which
/// `output` and `backward` start and the next norm ends. All run beside work that does not wait for them. Forward takes one
/// part of a micro-batch at a time, backward all. Owns no memory; holds views of its parameters and the group.
class Mixer {
 public:
  /// What `project` makes: the input of this layer's scan, and of the scans of the layers above that read its states.
  struct Projected {
    Tensor x;            ///< [B, T, C] the normalised input.
    Tensor xh_z;         ///< [B, T, 2D] in_proj's output: the convolution's input, and z.
    Tensor u;            ///< [B, T, D] after convolution and SiLU.
    Tensor dt;           ///< [B, T, D] dt_proj's output, before bias and softplus.
    Tensor dbc;          ///< [B, T, R+2N] f32, summed over the tensor group.
    Tensor dbc_operand;  ///< The same in the compute dtype, for products; dbc itself where that is f32.

    Matrix xh() const { return Matrix(xh_z).columns_of(0, xh_z.size(-1) / 2); }
    Matrix z() const { return Matrix(xh_z).columns_of(xh_z.size(-1) / 2, xh_z.size(-1) / 2); }
    Projected part(const Parts& parts, int i) const {
      return {.x = parts.of(x, i),
              .xh_z = parts.of(xh_z, i),
              .u = parts.of(u, i),
              .dt = parts.of(dt, i),
              .dbc = parts.of(dbc, i),
              .dbc_operand = parts.of(dbc_operand, i)};
    }
  };

  /// What `gate` and `mix` make.
  struct Mixed {
    Tensor gate_input;   ///< [B, T, G] fc1's output; absent without sources, like the next two.
    Tensor gate_hidden;  ///< [B, T, G] its silu.
    Tensor gate;         ///< [B, T, D] fc2's output, before its silu.
    Tensor out;          ///< [B, T, D] y ⊙ silu(z).

    Mixed part(const Parts& parts, int i) const {
      return {.gate_input = parts.of(gate_input, i),
              .gate_hidden = parts.of(gate_hidden, i),
              .gate = parts.of(gate, i),
              .out = parts.of(out, i)};
    }
  };

  /// What of a Projected is still there from an earlier projection.
  struct Known {
    bool xh_z = false;
    bool dbc = false;  ///< Then nothing is communicated.
  };

  /// States at the edges of a piece of sequence, for generation; all absent in training.
  struct Carry {
    Tensor conv_history;   ///< [B, W−1, D] f32, read and replaced.
    Tensor initial_state;  ///< [B, D, N] f32.
    Tensor final_state;    ///< [B, D, N] f32, written.
  };

  /// What `backward` leaves for `backward_weights`.
  struct Cotangents {
    Tensor out;         ///< [B, T, C] of `output`'s out.
    Tensor dt;          ///< [B, T, D]
    Tensor dbc;         ///< [B, T, R+2N] compute dtype, summed over the group.
    Tensor gate;        ///< [B, T, D] absent without sources, like the next.
    Tensor gate_input;  ///< [B, T, G]
  };

  Mixer(const ModelConfig& config, std::int64_t layer, const ParameterStore& store, TensorGroup& tensor);

  /// True when this layer reads the states of layers below.
  bool dense() const { return dense_; }

  /// These two fill everything of `projected` but x and what is `known`. The caller's norm has started to gather x as part
  /// `part`, which the first ends. It starts the sum of dbc, with `inbox` or without, and the second ends it after work of
  /// its own.
  void begin_project(Stream& stream, const Projected& projected, int part, const Carry& carry, const Tensor& inbox,
                     Known known) const;
  void end_project(Stream& stream, const Projected& projected, Known known) const;

  /// This layer's recurrence as the scans of the layers above run it.
  ScanRecurrence recurrence(const Projected& projected, const Tensor& chunk_states, const Tensor& initial_state) const;

  /// The gate of the dense readout, before its silu; nothing without sources.
  void gate(Stream& stream, const Projected& projected, const Mixed& mixed) const;

  /// Scan and dense readout, with the gate made. `chunk_states` [B, S, D, N] may be absent: then none are saved.
  void mix(Stream& stream, const Projected& projected, const Tensor& chunk_states, const Carry& carry,
           std::span<const ScanRecurrence> sources, const Mixed& mixed) const;

  /// Part `i` of out [B, T, C] = out_proj of mixed.out, which is that part's; starts its sum.
  void output(Stream& stream, const Parts& parts, int i, const Mixed& mixed, const Tensor& out) const;

  /// From dout [B, T, C] (cotangent of `output`'s out, whose gather this ends): dx [B, T, C] (overwritten; starts its sum),
  /// q [B, T, D] (written for dense layers: this layer's part in its sources' backward), and the
  /// gradients of in_proj (overwritten or added to, as `gradients` says), convolution and scan (added to). Of `mixed` it
  /// reads the gate; mixed.out is made again. Overwrites mixed.gate. Scratch comes from `arena`, and what it returns is part
  /// of it.
  Cotangents backward(Stream& stream, Arena& arena, const Parts& parts, const Tensor& small_inbox, const Tensor& dout,
                      const Projected& projected, const Mixed& mixed, const Tensor& chunk_states,
                      std::span<const ScanRecurrence> sources, std::span<const ScanReader> readers, const Tensor& q,
                      const Tensor& dx, Accumulate gradients) const;
  /// The gradients of the other matrices (overwritten or added to): work for while the group gathers the next dout.
  void backward_weights(Stream& stream, const Cotangents& cotangents, const Projected& projected, const Mixed& mixed,
                        Accumulate gradients) const;

 private:
  /// in_proj is one product where there is no sum over the group for one of its halves to hide.
  bool projects_at_once() const { return tensor_->ranks().size() == 1; }

  std::int64_t R_;
  std::int64_t N_;
  bool dense_;
  Parameter in_proj_;
  Tensor in_xh_, in_z_;  // the two halves of its value
  Parameter conv_weight_, conv_bias_, x_proj_, dt_proj_, dt_bias_, A_log_, skip_, out_proj_;
  Parameter gate_fc1_, gate_fc2_;  // absent without sources
  TensorGroup* tensor_;
};

}  // namespace dm
