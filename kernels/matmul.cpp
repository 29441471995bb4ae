// The checks of the matrix product.
#include "kernels/matmul.h"

#include <fmt/format.h>

#include <limits>

#include "kernels/check.h"
#include "kernels/dispatch.h"

namespace dm {
namespace {

/// "a [3, 4]", as the product sees it.
std::string named(std::string_view name, const Matrix& matrix, Transpose transpose) {
  return fmt::format("{} [{}, {}]{}", name, matrix.rows, matrix.columns, transpose == Transpose::yes ? " transposed" : "");
}

void check_matrix(const ArgumentCheck& check, std::string_view name, const Matrix& matrix) {
  check.compute(name, matrix.tensor, matrix.tensor.shape());
  constexpr std::int64_t kLargest = std::numeric_limits<std::int32_t>::max();
  if (matrix.rows > kLargest || matrix.row_stride > kLargest) {
    check.that(false, fmt::format("{} has {} rows of stride {}; the BLAS counts to 2^31 - 1, so split the product", name,
                                  matrix.rows, matrix.row_stride));
  }
  if (!matrix.fits()) {
    check.that(false, fmt::format("{} at offset {} with row stride {} reaches outside its tensor {}",
                                  named(name, matrix, Transpose::no), matrix.offset, matrix.row_stride,
                                  to_string(matrix.tensor.shape())));
  }
}

}  // namespace

void matmul(Stream& stream, const Matrix& a, Transpose transpose_a, const Matrix& b, Transpose transpose_b, const Matrix& c,
            Accumulate accumulate) {
  const ArgumentCheck check(stream, "matmul");
  check_matrix(check, "a", a);
  check_matrix(check, "b", b);
  check_matrix(check, "c", c);
  check.that(a.tensor.dtype() == b.tensor.dtype(), "a and b must have one element type");
  check.that(c.tensor.dtype() == DType::f32 || c.tensor.dtype() == a.tensor.dtype(),
             "c must be float32 or have the element type of a and b");
  const bool ta = transpose_a == Transpose::yes, tb = transpose_b == Transpose::yes;
  if ((ta ? a.columns : a.rows) != c.rows || (tb ? b.rows : b.columns) != c.columns ||
      (ta ? a.rows : a.columns) != (tb ? b.columns : b.rows)) {
    check.that(false, fmt::format("the shapes of {} times {} into {} do not agree", named("a", a, transpose_a),
                                  named("b", b, transpose_b), named("c", c, Transpose::no)));
  }
  dispatch(stream, "matmul", DM_TWINS(matmul), a, transpose_a, b, transpose_b, c, accumulate);
}

void use_matmul_candidate(Stream& stream, int index) {
  dispatch(stream, "matmul candidate", DM_TWINS(use_matmul_candidate), index);
}

}  // namespace dm
