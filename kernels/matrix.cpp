// Matrices inside tensors.
#include "kernels/matrix.h"

#include <fmt/format.h>

#include "runtime/error.h"

namespace dm {
namespace {

std::int64_t leading_extents(const Shape& shape) {
  std::int64_t product = 1;
  for (int axis = 0; axis + 1 < shape.rank(); ++axis) product *= shape[axis];
  return product;
}

}  // namespace

Matrix::Matrix(const Tensor& tensor) : tensor(tensor) {
  require(static_cast<bool>(tensor), "a matrix made of an absent tensor");
  rows = leading_extents(tensor.shape());
  columns = tensor.size(-1);
  row_stride = columns;
}

Matrix Matrix::columns_of(std::int64_t begin, std::int64_t count) const {
  if (begin < 0 || count < 0 || begin + count > columns) {
    fail(fmt::format("columns [{}, {}) of a matrix of {} columns", begin, begin + count, columns));
  }
  Matrix part = *this;
  part.columns = count;
  part.offset += begin;
  return part;
}

Matrix Matrix::rows_of(std::int64_t begin, std::int64_t count) const {
  if (begin < 0 || count < 0 || begin + count > rows) {
    fail(fmt::format("rows [{}, {}) of a matrix of {} rows", begin, begin + count, rows));
  }
  Matrix part = *this;
  part.rows = count;
  part.offset += begin * row_stride;
  return part;
}

bool Matrix::fits() const {
  return rows >= 0 && columns >= 0 && offset >= 0 && columns <= row_stride &&
         (rows == 0 || columns == 0 || offset + (rows - 1) * row_stride + columns <= tensor.numel());
}

}  // namespace dm
