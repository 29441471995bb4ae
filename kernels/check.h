// What every public op does first: check its tensors and say in one line which one is wrong.
#pragma once

#include <string_view>

#include "kernels/matrix.h"
#include "runtime/stream.h"

namespace dm {

/// The argument checks of one call. Each throws Error "op: name is bfloat16 [2, 3], expected float32 [2, 4]" when the
/// tensor is absent or has another shape, type or device than the op computes with. Costs a few comparisons an argument.
/// `compute` accepts the compute dtypes of the stream's device: float32 on the CPU, float32 or bfloat16 elsewhere.
class ArgumentCheck {
 public:
  /// `op` is a string literal.
  ArgumentCheck(const Stream& stream, std::string_view op) : stream_(stream), op_(op) {}

  void tensor(std::string_view name, const Tensor& tensor, const Shape& shape, DType dtype) const;
  void compute(std::string_view name, const Tensor& tensor, const Shape& shape) const;
  /// Any leading axes whose product is `rows`, and a last axis of `columns`.
  void rows(std::string_view name, const Tensor& tensor, std::int64_t rows, std::int64_t columns, DType dtype) const;
  void compute_rows(std::string_view name, const Tensor& tensor, std::int64_t rows, std::int64_t columns) const;
  /// Of these extents, with any row stride.
  void matrix(std::string_view name, const Matrix& matrix, std::int64_t rows, std::int64_t columns, DType dtype) const;
  /// Any shape of `count` elements.
  void elements(std::string_view name, const Tensor& tensor, std::int64_t count, DType dtype) const;
  void compute_elements(std::string_view name, const Tensor& tensor, std::int64_t count) const;
  /// Throws Error "op: <what>" unless `condition` holds.
  void that(bool condition, std::string_view what) const;

 private:
  bool type_and_place(const Tensor& tensor, DType dtype) const;
  bool is_compute(DType dtype) const;
  [[noreturn]] void refuse(std::string_view name, const Tensor& tensor, DType dtype, const std::string& shape) const;

  const Stream& stream_;
  std::string_view op_;
};

}  // namespace dm
