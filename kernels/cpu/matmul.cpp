// The matrix product on the CPU: OpenBLAS, told the cases that it leaves open.
#include "kernels/matmul.h"

#include <cblas.h>

#include <algorithm>

namespace dm {

void use_one_blas_thread() {
  openblas_set_num_threads(1);
}

namespace cpu {
namespace {

float* first(const Matrix& matrix) {
  return matrix.tensor.as<float>() + matrix.offset;
}

/// The BLAS wants a stride of at least one, also of a matrix without columns.
blasint stride(const Matrix& matrix) {
  return static_cast<blasint>(std::max<std::int64_t>(matrix.row_stride, 1));
}

CBLAS_TRANSPOSE flag(Transpose transpose) {
  return transpose == Transpose::yes ? CblasTrans : CblasNoTrans;
}

}  // namespace

void matmul(Stream&, const Matrix& a, Transpose transpose_a, const Matrix& b, Transpose transpose_b, const Matrix& c,
            Accumulate accumulate) {
  const std::int64_t k = transpose_a == Transpose::yes ? a.rows : a.columns;
  if (c.rows == 0 || c.columns == 0) return;
  if (k == 0) {
    if (accumulate == Accumulate::add) return;
    for (std::int64_t row = 0; row < c.rows; ++row) std::fill_n(first(c) + row * c.row_stride, c.columns, 0.0f);
    return;
  }
  cblas_sgemm(CblasRowMajor, flag(transpose_a), flag(transpose_b), static_cast<blasint>(c.rows),
              static_cast<blasint>(c.columns), static_cast<blasint>(k), 1.0f, first(a), stride(a), first(b), stride(b),
              accumulate == Accumulate::add ? 1.0f : 0.0f, first(c), stride(c));
}

void use_matmul_candidate(Stream&, int) {}

}  // namespace cpu
}  // namespace dm
