// AdamW whose state is partitioned over the data group (ZeRO-1), with gradients reduced and values gathered block by block.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "model/parameter_store.h"
#include "parallel/checkpoint.h"
#include "parallel/grid.h"
#include "runtime/buffer.h"
#include "runtime/stream.h"

namespace dm {

/// One step is: `reduce_block` for every block as backward completes it (on the last micro-batch), or `reduce_all` after it,
/// `add_gradient_norm_squared`, then `update`. Collective over the grid. The host never waits: whether and how far to update
/// is decided on the device. Holds float32 moments of the owned slices alone: 8 bytes a parameter / data ranks; the masters
/// are the store's.
class PartitionedAdamW {
 public:
  struct Settings {
    float beta1 = 0.9f;
    float beta2 = 0.95f;
    float epsilon = 1e-8f;
    float weight_decay = 0.1f;
    float clip = 0;  ///< Largest norm of the whole gradient; 0: none.
  };

  /// `store` and `grid` outlive the optimizer.
  PartitionedAdamW(const ParameterStore& store, Grid& grid, Settings settings, MemoryReport& report);

  /// Sums the gradients of `block`, or of all blocks, over the data group into the owners' slices.
  void reduce_block(Stream& stream, int block);
  void reduce_all(Stream& stream);

  /// norm_squared[0], zero before, becomes the squared norm of the whole model's reduced gradient: every logical element
  /// counts once, whichever ranks hold it. The same bits on every rank. norm_squared [1] f32.
  void add_gradient_norm_squared(Stream& stream, const Tensor& norm_squared);

  /// Called with a block whose slices are updated, in the order in which a forward pass needs them.
  using BlockUpdated = std::function<void(int block)>;
  /// Updates the owned slices with the reduced, clipped gradients, unless loss_sum or norm_squared ([1] f32 each, the same
  /// on every rank) is not finite: then nothing changes. Values are complete after `gather_block` of every block, which
  /// `updated` may start.
  void update(Stream& stream, float lr, const Tensor& loss_sum, const Tensor& norm_squared, const BlockUpdated& updated);
  /// Completes the values of a block, or of all blocks, over the data group.
  void gather_block(Stream& stream, int block);
  void gather_all(Stream& stream);

  /// Number of updates made, [1] i32 on the device: the exponent of the bias corrections.
  Tensor updates() const { return control_.tensor({1}, DType::i32); }

  /// Every element of value (master), first and second moment that this rank owns, in host memory, for saving: over all
  /// ranks each logical element once. Waits for the stream. Valid until the next call of either function.
  std::vector<StatePiece> pieces_to_save(Stream& stream);
  /// Every element that this rank must have to go on, copies that other tensor ranks own included, in host memory: fill
  /// them, then call `finish_load`.
  std::vector<StatePiece> pieces_to_load();
  /// Takes what was loaded to the device and completes the values. Collective over the data group; waits for the stream.
  void finish_load(Stream& stream);

 private:
  /// The part of one parameter in this rank's slice of its block.
  struct Segment {
    const ParameterStore::Entry* entry;
    FlatRange flat;            ///< In the gradients.
    std::int64_t state_begin;  ///< In the moments, and counted over all blocks' slices.
    bool first_copy;           ///< False when another tensor rank holds the same logical elements and comes first.
  };
  /// Neighbouring segments that are treated alike, with the padding between them, whose values and gradients are always
  /// zero.
  struct Run {
    int block;
    bool decay;
    bool first_copy;
    FlatRange flat;
    std::int64_t state_begin;
  };
  /// Masters and moments of this rank's slices, each one after the other: on the device, or mirrored on the host.
  struct State {
    std::function<Tensor(int block)> masters;
    Tensor first, second;
  };

  Tensor first() const { return first_moments_.tensor({store_.partition().owned_elements()}, DType::f32); }
  Tensor second() const { return second_moments_.tensor({store_.partition().owned_elements()}, DType::f32); }
  /// (gradient scale, bias corrections) of the step at hand, after the count of updates.
  Tensor control() const;
  /// The state in host memory: itself on the CPU, else the mirror, made at the first use.
  State host_state();
  /// Copies between the device's state and its mirror; nothing on the CPU.
  void mirror(Stream& stream, bool to_host);
  std::vector<StatePiece> pieces(bool first_copies_only);

  const ParameterStore& store_;
  Grid& grid_;
  Settings settings_;
  MemoryReport& report_;
  std::vector<Segment> segments_;
  std::vector<Run> runs_;
  Buffer first_moments_;
  Buffer second_moments_;
  Buffer control_;
  std::optional<Buffer> mirror_;
};

}  // namespace dm
