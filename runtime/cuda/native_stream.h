// CUDA's own handles behind a Stream; for .cu files and the NCCL communicator.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "runtime/error.h"
#include "runtime/stream.h"

namespace dm::cuda {

/// Everything that decides which algorithm a matrix product runs: sizes, strides, transposes, types, accumulation,
/// alignment, and the stream's matmul_candidate.
using MatmulKey = std::array<std::int64_t, 13>;

struct NativeStream {
  int device = 0;
  int multiprocessors = 0;
  cudaStream_t stream = nullptr;
  cublasLtHandle_t blas = nullptr;
  void* workspace = nullptr;  ///< Of cuBLASLt's algorithms; one product at a time uses it.
  std::size_t workspace_bytes = 0;
  int matmul_candidate = -1;                             ///< As of use_matmul_candidate().
  std::map<MatmulKey, cublasLtMatmulAlgo_t> algorithms;  ///< Chosen at the first use of a product.
};

/// The handles of a stream on a CUDA device.
inline NativeStream& native(Stream& stream) {
  return *stream.native();
}

inline void check(cudaError_t status, const char* expression, SourceLocation where) {
  if (status == cudaSuccess) [[likely]]
    return;
  throw Error(std::string(expression) + ": " + cudaGetErrorString(status), ExitCode::retryable, where);
}
inline void check(cublasStatus_t status, const char* expression, SourceLocation where) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]]
    return;
  throw Error(std::string(expression) + ": " + cublasLtGetStatusString(status), ExitCode::retryable, where);
}

}  // namespace dm::cuda

/// Throws Error with the expression, CUDA's or cuBLAS's words and the place. After a kernel launch:
/// CUDA_CHECK(cudaGetLastError()).
#define CUDA_CHECK(expression) ::dm::cuda::check((expression), #expression, ::dm::SourceLocation::current())
