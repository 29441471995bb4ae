// Rows of a tensor, or some columns of them: what products and ops on parts of wider activations take.
#pragma once

#include <cstdint>

#include "runtime/tensor.h"

namespace dm {

/// A row-major matrix inside a tensor: `rows` rows of `columns` elements, `row_stride` elements apart.
struct Matrix {
  Tensor tensor;  ///< Holds the elements; the matrix starts `offset` elements into it.
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t row_stride = 0;
  std::int64_t offset = 0;

  Matrix() = default;
  /// All leading axes of `tensor` as rows, its last axis as columns.
  Matrix(const Tensor& tensor);  // NOLINT(google-explicit-constructor): a tensor is a matrix
  /// Columns [begin, begin + count) of the same rows.
  Matrix columns_of(std::int64_t begin, std::int64_t count) const;
  /// Rows [begin, begin + count).
  Matrix rows_of(std::int64_t begin, std::int64_t count) const;

  explicit operator bool() const { return static_cast<bool>(tensor); }
  /// True when no row reaches outside the tensor.
  bool fits() const;
  /// Its first element.
  template <class T>
  T* as() const {
    return tensor.as<T>() + offset;
  }
};

}  // namespace dm
