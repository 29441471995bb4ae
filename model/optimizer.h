// AdamW whose state is partitioned over the data group (ZeRO-1), with gradients reduced and values gathered block by block.
#pragma once

#include <cstdint>
#include <vector>

#include "model/parameter_store.h"
#include "parallel/checkpoint.h"
#include "parallel/grid.h"
#include "runtime/buffer.h"
#include "runtime/stream.h"

namespace dm {

/// One step is: `reduce_block` for every block as backward completes it (on the last micro-batch),
/// `add_gradient_norm_squared`, then `update`. Collective over the grid. Holds float32 moments of the owned slices alone: 8
/// bytes a parameter / data ranks; the float32 values serve as masters.
class PartitionedAdamW {
 public:
  struct Settings {
    float beta1 = 0.9f;
    float beta2 = 0.95f;
    float epsilon = 1e-8f;
    float weight_decay = 0.1f;
  };

  /// `store` and `grid` outlive the optimizer.
  PartitionedAdamW(const ParameterStore& store, Grid& grid, Settings settings, Device device, MemoryReport& report);

  /// Sums the gradients of `block` over the data group into the owners' slices.
  void reduce_block(Stream& stream, int block);

  /// norm_squared[0], zero before, becomes the squared norm of the whole model's reduced gradient: every logical element
  /// counts once, whichever ranks hold it. The same bits on every rank. norm_squared [1] f32.
  void add_gradient_norm_squared(Stream& stream, const Tensor& norm_squared);

  /// The `step`-th update (from 1) of all values with the reduced gradients times `gradient_scale`.
  void update(Stream& stream, float lr, std::int64_t step, float gradient_scale);

  /// Every element of value, first and second moment that this rank owns, for saving: over all ranks each logical element
  /// once.
  std::vector<StatePiece> pieces_to_save() const;
  /// Every element that this rank must have to go on, copies that other tensor ranks own included. After loading into
  /// them call `gather_values`.
  std::vector<StatePiece> pieces_to_load() const;
  /// Completes the values of the data group from the owned slices.
  void gather_values(Stream& stream);

 private:
  /// The part of one parameter in this rank's slice of its block.
  struct Segment {
    const ParameterStore::Entry* entry;
    FlatRange flat;            ///< In values and gradients.
    std::int64_t state_begin;  ///< In the moments.
    bool first_copy;           ///< False when another tensor rank holds the same logical elements and comes first.
  };

  std::vector<StatePiece> pieces(bool first_copies_only) const;

  const ParameterStore& store_;
  Grid& grid_;
  Settings settings_;
  std::vector<Segment> segments_;
  Buffer first_moments_;
  Buffer second_moments_;
};

}  // namespace dm
