// The rows of the residual stream over a tensor group: pieces that follow one another over the wire, each rank's part of
// each.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/matrix.h"
#include "runtime/tensor.h"

namespace dm {

/// Between the products of one layer and the next, tokens do not depend on one another. So their rows go in pieces, one of
/// which is on the wire while products work on another, and within a piece every rank adds and normalises an own part only
/// ("sequence parallelism": Korthikanti et al., "Reducing activation recomputation in large transformer models", 2022).
/// Where the ranks do not divide the rows there is one piece, all of which is every rank's own.
class RowPieces {
 public:
  /// Enough to overlap; with more of them each transfer is slower.
  static constexpr std::int64_t kPieces = 2;

  RowPieces(std::int64_t rows, int rank, int ranks)
      : rows_(rows), rank_(ranks > 1 && rows % ranks == 0 ? rank : 0), ranks_(rows % ranks == 0 ? ranks : 1) {}
  /// One piece, every rank's own.
  static RowPieces whole(std::int64_t rows) { return RowPieces(rows, 0, 1); }

  /// False where every rank's own part is everything.
  bool cut() const { return ranks_ > 1; }
  int count() const { return static_cast<int>(cut() ? std::min(kPieces, rows_ / ranks_) : 1); }

  /// The rows of piece `i` of x [.., C], as [rows, C], or of x [rows].
  Tensor piece(const Tensor& x, int i) const { return as_rows(x).slice(begin(i), begin(i + 1) - begin(i)); }
  Matrix piece(const Matrix& x, int i) const { return x.rows_of(begin(i), begin(i + 1) - begin(i)); }
  /// This rank's part of that.
  Tensor own(const Tensor& x, int i) const {
    const std::int64_t part = (begin(i + 1) - begin(i)) / ranks_;
    return piece(x, i).slice(rank_ * part, part);
  }

 private:
  std::int64_t begin(int i) const { return rows_ / ranks_ * i / count() * ranks_; }
  static Tensor as_rows(const Tensor& x) { return x.shape().rank() == 1 ? x : x.reshaped({x.rows(), x.size(-1)}); }

  std::int64_t rows_;
  int rank_, ranks_;
};

}  // namespace dm
