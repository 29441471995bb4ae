// Matrix products by cuBLASLt: bf16 inputs with float32 sums, or float32 throughout; one algorithm a shape, by a fixed rule.
//
// cuBLASLt thinks in column-major matrices. A row-major [rows, columns] matrix is the column-major [columns, rows] one with
// the same stride, so C = op(A)·op(B) is asked for as Cᵀ = op(B)ᵀ·op(A)ᵀ: the inputs change places and nothing is copied.
//
// The algorithm is chosen by rule: a choice by timing could differ between runs and ranks, and with it the bits. The rule is
// the first of cuBLASLt's heuristic, but for two cases. Its largest tiles are slower than the next ones unless they save a
// whole wave of a few. And where sums are short beside the writing of their bf16 result, an algorithm whose tile leaves
// registers for a second block on the multiprocessor is better: one block multiplies while the other writes. Measured on
// H100 with cuBLASLt 13.1 (in_proj, half of it, out_proj, head; widths 768 to 2560; 10,240 to 131,072 tokens, 4,096 at the
// head) against the fastest of the heuristic's first eight, mean and worst time: forward products +0.3 % and +3.5 % (the
// heuristic's first: +6.8 % and +14 %), gradients of inputs +0.2 % and +1.9 % (+3.2 % and +15 %), of weights +0.2 % and
// +1.5 % (+0.5 % and +4.1 %). The rule was made from these very measurements, which took operands at multiples of 256 bytes;
// the lists differ with alignment. Clocks at the limit of power lengthen all of a product's algorithms alike.
#include "kernels/matmul.h"

#include <algorithm>
#include <array>
#include <span>

#include "runtime/cuda/native_stream.h"

namespace dm {

namespace cuda {
namespace {

cudaDataType_t type_of(DType dtype) {
  require(dtype == DType::f32 || dtype == DType::bf16, "matmul: float32 or bfloat16");
  return dtype == DType::f32 ? CUDA_R_32F : CUDA_R_16BF;
}

char* data_of(const Matrix& matrix) {
  return static_cast<char*>(matrix.tensor.data()) + matrix.offset * size_of(matrix.tensor.dtype());
}

/// Alignment of the first element in bytes, up to 16: what decides whether an algorithm may use wide accesses.
std::int64_t alignment_of(const Matrix& matrix) {
  const auto address = reinterpret_cast<std::uintptr_t>(data_of(matrix));
  return address % 16 == 0 ? 16 : address % 8 == 0 ? 8 : address % 4 == 0 ? 4 : 2;
}

using Candidate = cublasLtMatmulHeuristicResult_t;

/// False for tiles that hardly ever pay.
bool is_handy(std::uint32_t tile) {
  return tile != CUBLASLT_MATMUL_TILE_192x192 && tile != CUBLASLT_MATMUL_TILE_320x128;
}
/// True for tiles that two blocks of a multiprocessor hold in registers, and that are large enough to multiply at full rate.
bool leaves_room(std::uint32_t tile) {
  return tile == CUBLASLT_MATMUL_TILE_128x128 || tile == CUBLASLT_MATMUL_TILE_128x160 ||
         tile == CUBLASLT_MATMUL_TILE_168x128 || tile == CUBLASLT_MATMUL_TILE_176x128;
}

/// The rule at the top of this file: `sum` products are added up in each element of the result.
const Candidate& pick(std::span<const Candidate> candidates, std::int64_t sum, DType result) {
  constexpr std::int64_t kShortest = 256, kLongest = 2560;
  constexpr float kManyWaves = 5;
  const auto first_with = [&](bool (*wanted)(std::uint32_t tile)) {
    return std::find_if(candidates.begin(), candidates.end(), [&](const Candidate& candidate) {
      if (candidate.state != CUBLAS_STATUS_SUCCESS) return false;
      std::uint32_t tile = 0;
      std::size_t written = 0;
      CUDA_CHECK(
          cublasLtMatmulAlgoConfigGetAttribute(&candidate.algo, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof tile, &written));
      return wanted(tile);
    });
  };
  auto at = candidates.end();
  if (result == DType::bf16 && sum >= kShortest && sum <= kLongest) at = first_with(leaves_room);
  if (at == candidates.end() && candidates.front().wavesCount >= kManyWaves) at = first_with(is_handy);
  return at == candidates.end() ? candidates.front() : *at;
}

/// cuBLASLt's descriptors of one product, destroyed with the object. Host memory alone: making them takes about a
/// microsecond.
class Product {
 public:
  Product(const Matrix& a, Transpose transpose_a, const Matrix& b, Transpose transpose_b, const Matrix& c) {
    CUDA_CHECK(cublasLtMatmulDescCreate(&operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    set_transpose(CUBLASLT_MATMUL_DESC_TRANSA, transpose_b);
    set_transpose(CUBLASLT_MATMUL_DESC_TRANSB, transpose_a);
    layout(first_, b);
    layout(second_, a);
    layout(result_, c);
  }
  ~Product() {
    for (cublasLtMatrixLayout_t layout : {first_, second_, result_}) {
      if (layout) cublasLtMatrixLayoutDestroy(layout);
    }
    if (operation_) cublasLtMatmulDescDestroy(operation_);
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;

  cublasLtMatmulAlgo_t choose(const NativeStream& native, const Matrix& a, const Matrix& b, const Matrix& c,
                              std::int64_t sum) const {
    cublasLtMatmulPreference_t preference = nullptr;
    CUDA_CHECK(cublasLtMatmulPreferenceCreate(&preference));
    const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      CUDA_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value));
    };
    set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<std::uint64_t>(native.workspace_bytes));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<std::uint32_t>(alignment_of(b)));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<std::uint32_t>(alignment_of(a)));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<std::uint32_t>(alignment_of(c)));
    set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<std::uint32_t>(alignment_of(c)));
    std::array<Candidate, kMatmulCandidates> candidates{};
    int found = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(native.blas, operation_, first_, second_, result_, result_, preference,
                                       static_cast<int>(candidates.size()), candidates.data(), &found);
    cublasLtMatmulPreferenceDestroy(preference);
    CUDA_CHECK(status);
    require(found > 0, "cuBLASLt has no algorithm for a matrix product");
    const bool is_bf16 = a.tensor.dtype() == DType::bf16;
    const std::span<const Candidate> list(candidates.data(), is_bf16 ? static_cast<std::size_t>(found) : 1);
    const auto wanted = static_cast<std::size_t>(native.matmul_candidate);
    const bool named =
        native.matmul_candidate != kMatmulRule && wanted < list.size() && list[wanted].state == CUBLAS_STATUS_SUCCESS;
    return (named ? list[wanted] : pick(list, sum, c.tensor.dtype())).algo;
  }

  void run(const NativeStream& native, const cublasLtMatmulAlgo_t& algorithm, const Matrix& a, const Matrix& b,
           const Matrix& c, Accumulate accumulate) const {
    const float alpha = 1.0f, beta = accumulate == Accumulate::add ? 1.0f : 0.0f;
    CUDA_CHECK(cublasLtMatmul(native.blas, operation_, &alpha, data_of(b), first_, data_of(a), second_, &beta, data_of(c),
                              result_, data_of(c), result_, &algorithm, native.workspace, native.workspace_bytes,
                              native.stream));
  }

 private:
  void set_transpose(cublasLtMatmulDescAttributes_t attribute, Transpose transpose) {
    const cublasOperation_t operation = transpose == Transpose::yes ? CUBLAS_OP_T : CUBLAS_OP_N;
    CUDA_CHECK(cublasLtMatmulDescSetAttribute(operation_, attribute, &operation, sizeof operation));
  }
  static void layout(cublasLtMatrixLayout_t& layout, const Matrix& matrix) {
    CUDA_CHECK(cublasLtMatrixLayoutCreate(&layout, type_of(matrix.tensor.dtype()),
                                          static_cast<std::uint64_t>(matrix.columns),
                                          static_cast<std::uint64_t>(matrix.rows), matrix.row_stride));
  }

  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t first_ = nullptr, second_ = nullptr, result_ = nullptr;
};

MatmulKey key_of(const Matrix& a, Transpose transpose_a, const Matrix& b, Transpose transpose_b, const Matrix& c,
                 Accumulate accumulate, int candidate) {
  const std::int64_t alignments = alignment_of(a) * 10000 + alignment_of(b) * 100 + alignment_of(c);
  return {a.rows,
          a.columns,
          a.row_stride,
          b.rows,
          b.columns,
          b.row_stride,
          c.row_stride,
          static_cast<std::int64_t>(transpose_a),
          static_cast<std::int64_t>(transpose_b),
          static_cast<std::int64_t>(a.tensor.dtype()) * 16 + static_cast<std::int64_t>(c.tensor.dtype()),
          static_cast<std::int64_t>(accumulate),
          alignments,
          candidate};
}

}  // namespace

void matmul(Stream& stream, const Matrix& a, Transpose transpose_a, const Matrix& b, Transpose transpose_b, const Matrix& c,
            Accumulate accumulate) {
  NativeStream& native = cuda::native(stream);
  if (c.rows == 0 || c.columns == 0) return;
  if (a.rows == 0 || a.columns == 0) {  // an empty sum
    if (accumulate == Accumulate::add) return;
    const auto bytes = static_cast<std::size_t>(size_of(c.tensor.dtype()));
    CUDA_CHECK(cudaMemset2DAsync(data_of(c), static_cast<std::size_t>(c.row_stride) * bytes, 0,
                                 static_cast<std::size_t>(c.columns) * bytes, static_cast<std::size_t>(c.rows),
                                 native.stream));
    return;
  }
  const Product product(a, transpose_a, b, transpose_b, c);
  const MatmulKey key = key_of(a, transpose_a, b, transpose_b, c, accumulate, native.matmul_candidate);
  auto at = native.algorithms.find(key);
  if (at == native.algorithms.end())
    at = native.algorithms.emplace(key, product.choose(native, a, b, c, transpose_a == Transpose::yes ? a.rows : a.columns))
             .first;
  product.run(native, at->second, a, b, c, accumulate);
}

void use_matmul_candidate(Stream& stream, int index) {
  cuda::native(stream).matmul_candidate = index;
}

}  // namespace cuda
}  // namespace dm
