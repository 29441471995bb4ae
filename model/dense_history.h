// What the next M layers need of a layer, in forward and in backward: the dense connections and their lifetime.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/mixer.h"

namespace dm {

/// Whether backward finds everything forward made, or makes most of it again block by block.
enum class Recompute : std::uint8_t { none, block };

/// Trainers assume that one residual stream connects layers; here layer l also reads the recurrences of layers l−M … l−1,
/// and in backward receives the rank-one sources (q, C) of layers l+1 … l+M. This type holds those activations in rings: a
/// layer's entry lives until nobody reads it, and the arena's plan accounts for it.
///
/// Kept for every layer until its backward (4·(C + 2·D·N/kScanChunk + R + 2N) bytes a token): the residual before the layer,
/// x_proj's reduced output, the scan's chunk states. The rest has as many slots as `slots_for` says: all layers, or M + 1
/// when backward recomputes or there is no backward.
class DenseHistory {
 public:
  struct Kept {
    Tensor residual;      ///< [B, T, C] f32: the residual stream before the layer.
    Tensor rstd;          ///< [B·T] f32 of its norm.
    Tensor chunk_states;  ///< As `scan_states` says; absent without backward.
  };

  /// Allocates from `arena` for one forward (and backward, when `training`).
  DenseHistory(Arena& arena, const ModelConfig& config, const ActivationShape& shape, bool training, Recompute recompute,
               std::span<const Mixer> mixers);

  const Kept& kept(std::int64_t layer) const { return kept_[index(layer, kept_)]; }
  /// The projections' slot of `layer`; `claim` says that it now holds that layer's.
  const Mixer::Projected& projected(std::int64_t layer) const { return projected_[index(layer, projected_)]; }
  const Mixer::Mixed& mixed(std::int64_t layer) const { return mixed_[index(layer, mixed_)]; }
  void claim(std::int64_t layer);
  bool holds_projected(std::int64_t layer) const { return projected_owner_[index(layer, projected_)] == layer; }
  bool holds_mixed(std::int64_t layer) const { return mixed_owner_[index(layer, mixed_)] == layer; }
  void claim_mixed(std::int64_t layer) { mixed_owner_[index(layer, mixed_)] = layer; }

  /// The recurrences that `layer` reads, nearest first. Their projections must be held. Valid until the next call.
  std::span<const ScanRecurrence> sources(std::int64_t layer);
  /// The layers that read `layer`, whose q their backward has written, nearest first. Valid until the next call.
  std::span<const ScanReader> readers(std::int64_t layer);
  /// Where `layer`'s backward writes its q; absent for layers without sources.
  Tensor q(std::int64_t layer) const;

 private:
  template <class T>
  static std::size_t index(std::int64_t layer, const std::vector<T>& ring) {
    return static_cast<std::size_t>(layer) % ring.size();
  }

  const ModelConfig& config_;
  std::span<const Mixer> mixers_;
  DType compute_;
  std::vector<Kept> kept_;
  std::vector<Tensor> dbc_;
  std::vector<Mixer::Projected> projected_;
  std::vector<std::int64_t> projected_owner_;
  std::vector<Mixer::Mixed> mixed_;
  std::vector<std::int64_t> mixed_owner_;
  std::vector<Tensor> q_;
  std::vector<ScanRecurrence> sources_;
  std::vector<ScanReader> readers_;
};

}  // namespace dm
