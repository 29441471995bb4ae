// Sums and gathers over the ranks that share a copy of the model, beside the work that does not wait for them.
#pragma once

#include <array>
#include <cstddef>
#include <optional>

#include "model/row_pieces.h"
#include "parallel/communicator.h"
#include "runtime/stream.h"

namespace dm {

/// A tensor-parallel layer waits for sums of its ranks' partial results. Between the start of a transfer and its finish the
/// stream's work leaves the tensor alone, and the transfer runs on a stream of its own, one after the other. Every rank of
/// the group makes the same calls. On the CPU a transfer is done when it is started, and a group of one transfers nothing.
class TensorGroup {
 public:
  /// `ranks` outlives the group.
  explicit TensorGroup(Communicator& ranks) : ranks_(ranks) {}
  TensorGroup(const TensorGroup&) = delete;
  TensorGroup& operator=(const TensorGroup&) = delete;

  Communicator& ranks() const { return ranks_; }
  RowPieces pieces(std::int64_t rows) const { return RowPieces(rows, ranks_.rank(), ranks_.size()); }

  /// tensor = sum over the ranks of what is in it after all work given to `stream` so far. One such sum at a time.
  void start_sum(Stream& stream, const Tensor& tensor) {
    start(stream, sum_, [&](Stream& beside) { ranks_.all_reduce(beside, tensor); });
  }
  /// Work given to `stream` from now on sees the sum.
  void finish_sum(Stream& stream) const { sum_.done.hold(stream); }

  /// This rank's own rows of piece `i` of x = sum over the ranks; the rest of the piece is undefined. One transfer of a
  /// piece number at a time: `finish` it before the next.
  void start_sum(Stream& stream, const RowPieces& rows, const Tensor& x, int i) {
    const Tensor piece = rows.piece(x, i);
    start(stream, pieces_[static_cast<std::size_t>(i)], [&](Stream& beside) {
      if (rows.cut()) {
        ranks_.reduce_scatter(beside, piece.flat(), rows.own(x, i).flat());
      } else {
        ranks_.all_reduce(beside, piece);
      }
    });
  }
  /// Piece `i` of x = the own rows of all ranks.
  void start_gather(Stream& stream, const RowPieces& rows, const Tensor& x, int i) {
    if (!rows.cut()) return;
    start(stream, pieces_[static_cast<std::size_t>(i)],
          [&](Stream& beside) { ranks_.all_gather(beside, rows.own(x, i).flat(), rows.piece(x, i).flat()); });
  }
  /// Work given to `stream` from now on sees what was last started for piece `i`.
  void finish(Stream& stream, int i) const { pieces_[static_cast<std::size_t>(i)].done.hold(stream); }
  void finish(Stream& stream, const RowPieces& rows) const {
    for (int i = 0; i < rows.count(); ++i) finish(stream, i);
  }

 private:
  struct Transfer {
    Event begin, done;
  };

  template <class Work>
  void start(Stream& stream, Transfer& transfer, const Work& work) {
    if (ranks_.size() == 1) return;
    if (!stream.native()) return work(stream);
    if (!beside_) beside_.emplace(stream.device(), nullptr, Stream::Priority::high);
    transfer.begin.record(stream);
    transfer.begin.hold(*beside_);
    work(*beside_);
    transfer.done.record(*beside_);
  }

  Communicator& ranks_;
  std::optional<Stream> beside_;  // of a GPU; made at the first transfer
  Transfer sum_;
  std::array<Transfer, RowPieces::kPieces> pieces_;
};

}  // namespace dm
