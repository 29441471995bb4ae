// What the next M layers need of a layer, in forward and in backward: the dense connections and their lifetime.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "model/mixer.h"

namespace dm {

/// What backward makes again instead of finding it kept. Bytes kept a token and layer in bf16, and what is repeated:
///   none       26 C + 4 (R + 2N)   nothing but the scan's output, which its backward gives anyway
///   selective  18 C + 4 (R + 2N)   the convolution, dt_proj and the gate: large results of little work
///   block      10 C + 4 (R + 2N)   in_proj too: only a block's input, x_proj's output and the scan's states are kept
enum class Recompute : std::uint8_t { none, selective, block };

/// Trainers assume that one residual stream connects layers; here layer l also reads the recurrences of layers l−M … l−1,
/// and in backward receives the rank-one sources (q, C) of layers l+1 … l+M. This type holds those activations in rings: a
/// layer's entry lives until nobody reads it, and the arena's plan accounts for it.
///
/// A ring has a slot for every layer where backward is to find what forward made, else M + 1: as many as are read at a time.
/// x_proj's output is kept for every layer, so that recomputation never communicates.
class DenseHistory {
 public:
  /// Allocates from `arena` for one forward (and backward, when `training`).
  DenseHistory(Arena& arena, const ModelConfig& config, const ActivationShape& shape, bool training, Recompute recompute,
               std::span<const Mixer> mixers);

  /// [B, T] f32, of the norm before `layer`, which writes the normalised input to projected(layer).x.
  Tensor rstd(std::int64_t layer) const { return rstd_[index(layer)]; }
  /// As `scan_states` says; absent without backward.
  Tensor chunk_states(std::int64_t layer) const { return chunk_states_[index(layer)]; }
  /// In the slots of `layer`, whatever layer they hold; `claim` says that they now hold that one's.
  const Mixer::Projected& projected(std::int64_t layer) const { return projected_[index(layer)]; }
  const Mixer::Mixed& mixed(std::int64_t layer) const { return mixed_[index(layer)]; }

  enum class Part : std::uint8_t { xh_z, scan_inputs, gate };
  bool holds(Part part, std::int64_t layer) const { return owners_[at(part)][slot(part, layer)] == layer; }
  void claim(Part part, std::int64_t layer) { owners_[at(part)][slot(part, layer)] = layer; }

  /// Part `i` of the recurrences that `layer` reads, nearest first. Their scan inputs must be held. Valid until the next
  /// call.
  std::span<const ScanRecurrence> sources(std::int64_t layer, const Parts& parts, int i);
  /// All of them.
  std::span<const ScanRecurrence> sources(std::int64_t layer) { return sources(layer, whole_, 0); }
  /// The layers that read `layer`, whose q their backward has written, nearest first. Valid until the next call.
  std::span<const ScanReader> readers(std::int64_t layer);
  /// Where `layer`'s backward writes its q; absent for layers without sources.
  Tensor q(std::int64_t layer) const;

 private:
  static std::size_t index(std::int64_t layer) { return static_cast<std::size_t>(layer); }
  static std::size_t at(Part part) { return static_cast<std::size_t>(part); }
  std::size_t slot(Part part, std::int64_t layer) const { return index(layer) % owners_[at(part)].size(); }

  const ModelConfig& config_;
  Parts whole_;
  std::span<const Mixer> mixers_;
  std::vector<Tensor> rstd_, chunk_states_, q_;  // by layer, several of which may share a slot, like the next two
  std::vector<Mixer::Projected> projected_;
  std::vector<Mixer::Mixed> mixed_;
  std::vector<std::int64_t> owners_[3];  // the layer in each slot of a part's ring
  std::vector<ScanRecurrence> sources_;
  std::vector<ScanReader> readers_;
};

}  // namespace dm
