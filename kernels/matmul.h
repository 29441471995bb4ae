// Matrix products of row-major matrices: C = op(A)·op(B), or C += op(A)·op(B).
#pragma once

#include "kernels/matrix.h"
#include "runtime/stream.h"

namespace dm {

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

/// For measurements: from now on products of `stream` run the index-th of the kMatmulCandidates algorithms that cuBLASLt's
/// heuristic names for a shape, where there are so many; the rule's choice (kernels/cuda/matmul.cu) there and for
/// kMatmulRule. Nothing changes on a CPU.
using UseMatmulCandidateOp = void(Stream& stream, int index);
UseMatmulCandidateOp use_matmul_candidate;
inline constexpr int kMatmulCandidates = 8, kMatmulRule = -1;

/// Makes the BLAS compute in the calling thread: ranks are the parallelism on CPUs, and threads of several ranks would
/// fight for the cores. Once a process, before the first product.
void use_one_blas_thread();

namespace cpu {
MatmulOp matmul;
UseMatmulCandidateOp use_matmul_candidate;
}  // namespace cpu
namespace cuda {
MatmulOp matmul;
UseMatmulCandidateOp use_matmul_candidate;
}  // namespace cuda

}  // namespace dm
