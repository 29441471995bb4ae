// The parts of a micro-batch over a tensor group, and each rank's rows of them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "runtime/tensor.h"

namespace dm {

/// Sequences do not depend on one another but through the parameters. So a micro-batch of an even number of them may go
/// forward through the layers as two halves that take turns: what one half needs of other ranks travels while the other
/// computes. Between layers every rank adds and normalises rows of its own of each part only ("sequence parallelism":
/// Korthikanti et al., "Reducing activation recomputation in large transformer models", 2022). Where the ranks do not divide
/// a part's rows, all are every rank's own.
class Parts {
 public:
  static constexpr int kMost = 2;

  /// Of activations [batch, tokens, ..] on rank `rank` of `ranks`; halves, if told so, where they exist and ranks divide
  /// them.
  Parts(std::int64_t batch, std::int64_t tokens, int rank, int ranks, bool halves)
      : count_(halves && batch % 2 == 0 && batch / 2 * tokens % ranks == 0 ? 2 : 1),
        sequences_(batch / count_),
        ranks_(sequences_ * tokens % ranks == 0 ? ranks : 1),
        rank_(ranks_ > 1 ? rank : 0) {}
  /// One part, every rank's own.
  static Parts whole(std::int64_t batch, std::int64_t tokens) { return Parts(batch, tokens, 0, 1, false); }

  int count() const { return count_; }
  /// False where every rank's own rows are all.
  bool cut() const { return ranks_ > 1; }

  /// The sequences of part `i` of x [B, ..]; absent where x is.
  Tensor of(const Tensor& x, int i) const { return x ? x.slice(i * sequences_, sequences_) : Tensor(); }
  /// This rank's rows of that, [rows, C] of x [B, T, C] and [rows] of x [B, T].
  Tensor own(const Tensor& x, int i) const {
    const Tensor part = of(x, i);
    const Tensor rows = x.shape().rank() == 2 ? part.flat() : part.reshaped({part.rows(), part.size(-1)});
    const std::int64_t share = rows.size(0) / ranks_;
    return rows.slice(rank_ * share, share);
  }

  /// For what other ranks have in this rank's rows of part `i`, [ranks − 1, rows, C]: absent until `receive` gives memory
  /// for all parts, [ranks − 1, own rows of the micro-batch, C].
  Tensor inbox(int i) const { return inboxes_[static_cast<std::size_t>(i)]; }
  void receive(const Tensor& memory) {
    const Shape shape{memory.size(0), memory.size(1) / count_, memory.size(2)};
    for (int i = 0; i < count_; ++i) {
      inboxes_[static_cast<std::size_t>(i)] = memory.flat(i * shape.numel(), shape.numel()).reshaped(shape);
    }
  }

 private:
  int count_;
  std::int64_t sequences_;  // of a part
  int ranks_, rank_;
  std::array<Tensor, kMost> inboxes_;
};

}  // namespace dm
