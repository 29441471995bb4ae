// The shape of a DenseMamba model: everything that decides which function its weights compute.
#pragma once

#include <cstdint>
#include <string>

namespace dm {

/// Axis letters in brackets are those used in every shape comment of the project. Zero means "derived": `resolve` fills it
/// in.
struct ModelConfig {
  std::int64_t layers = 4;       ///< [L]
  std::int64_t d_model = 256;    ///< [C] width of the residual stream.
  std::int64_t expand = 2;       ///< D = expand · C channels inside a mixer.
  std::int64_t d_state = 16;     ///< [N] states a channel.
  std::int64_t d_conv = 4;       ///< [W] taps of the causal convolution.
  std::int64_t dt_rank = 0;      ///< [R]; derived: ceil(C / 16).
  std::int64_t dense_depth = 2;  ///< [M] layers below whose hidden states a layer reads; 0 is plain Mamba.
  std::int64_t gate_rank = 0;    ///< [G] bottleneck of the dense gate; derived: max(8, C / 32).
  std::int64_t vocabulary = 0;   ///< [V] tokens; derived from the tokenizer.

  std::int64_t d_inner() const { return expand * d_model; }  ///< [D], over all ranks.
  /// Rows of the embedding: V rounded up to a multiple of 128, whatever the grid.
  std::int64_t padded_vocabulary() const { return (vocabulary + 127) / 128 * 128; }
  /// Number of layers that layer `layer` reads: min(layer, M).
  std::int64_t sources_of(std::int64_t layer) const { return layer < dense_depth ? layer : dense_depth; }

  /// Fills derived values and throws Error (usage) naming the option that is out of range.
  void resolve();
  /// Learned values without vocabulary padding.
  std::int64_t parameters() const;
  /// Floating-point operations of one trained token, forward and backward, recomputation not counted: what MFU is divided
  /// by. 3 · (per layer 2·C·2D + 2WD + 2D(R+2N) + 2RD + 9DN + 5D + 2DC, dense 2·G·(C+D) + 8DN a source, head 2CV).
  double training_flops_per_token() const;

  friend bool operator==(const ModelConfig&, const ModelConfig&) = default;
};

}  // namespace dm
