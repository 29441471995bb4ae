// Matrix products of row-major matrices: C = op(A)·op(B), or C += op(A)·op(B).
#pragma once

#include <cstdint>

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

/// A row-major matrix inside a tensor: `rows` rows of `columns` elements, `row_stride` elements apart.
struct Matrix {
  Tensor tensor;  ///< Holds the elements; the matrix starts `offset` elements into it.
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t row_stride = 0;
  std::int64_t offset = 0;

  /// All leading axes of `tensor` as rows, its last axis as columns.
  Matrix(const Tensor& tensor);  // NOLINT(google-explicit-constructor): a tensor is a matrix
  /// Columns [begin, begin + count) of the same rows.
  Matrix columns_of(std::int64_t begin, std::int64_t count) const;
};

enum class Transpose : bool { no, yes };
enum class Accumulate : bool { overwrite, add };

/// c = op(a)·op(b) (overwrite) or c += op(a)·op(b) (add), op(a) [m, k], op(b) [k, n], c [m, n].
///
/// Dtypes: a and b alike, f32 (CPU); c f32 or the inputs'. Sums in float32. c must not overlap a or b. An empty k writes
/// zeros (overwrite). Same bits every run on one machine. Throws Error when the shapes do not agree, a matrix reaches
/// outside its tensor, or an extent or stride passes 2³¹ − 1.
using MatmulOp = void(Stream& stream, const Matrix& a, Transpose transpose_a, const Matrix& b, Transpose transpose_b,
                      const Matrix& c, Accumulate accumulate);
MatmulOp matmul;

/// Makes the BLAS compute in the calling thread: ranks are the parallelism on CPUs, and threads of several ranks would
/// fight for the cores. Once a process, before the first product.
void use_one_blas_thread();

namespace cpu {
MatmulOp matmul;
}
namespace cuda {
MatmulOp matmul;
}

}  // namespace dm
