// The argument checks of the public ops and their one error line.
#include "kernels/check.h"

#include <fmt/format.h>

namespace dm {

void ArgumentCheck::tensor(std::string_view name, const Tensor& tensor, const Shape& shape, DType dtype) const {
  if (tensor.shape() != shape || !type_and_place(tensor, dtype)) refuse(name, tensor, dtype, to_string(shape));
}

void ArgumentCheck::rows(std::string_view name, const Tensor& tensor, std::int64_t rows, std::int64_t columns,
                         DType dtype) const {
  const bool fits = tensor && tensor.size(-1) == columns && tensor.numel() == rows * columns;
  if (!fits || !type_and_place(tensor, dtype)) refuse(name, tensor, dtype, fmt::format("[{} rows, {}]", rows, columns));
}

void ArgumentCheck::matrix(std::string_view name, const Matrix& matrix, std::int64_t rows, std::int64_t columns,
                           DType dtype) const {
  const bool fits = matrix && matrix.rows == rows && matrix.columns == columns && matrix.fits();
  if (!fits || !type_and_place(matrix.tensor, dtype)) {
    refuse(name, matrix.tensor, dtype, fmt::format("[{} rows, {}]", rows, columns));
  }
}

void ArgumentCheck::elements(std::string_view name, const Tensor& tensor, std::int64_t count, DType dtype) const {
  const bool fits = tensor && tensor.numel() == count;
  if (!fits || !type_and_place(tensor, dtype)) refuse(name, tensor, dtype, fmt::format("of {} elements", count));
}

void ArgumentCheck::compute(std::string_view name, const Tensor& tensor, const Shape& shape) const {
  this->tensor(name, tensor, shape, is_compute(tensor.dtype()) ? tensor.dtype() : DType::f32);
}

void ArgumentCheck::compute_rows(std::string_view name, const Tensor& tensor, std::int64_t rows,
                                 std::int64_t columns) const {
  this->rows(name, tensor, rows, columns, is_compute(tensor.dtype()) ? tensor.dtype() : DType::f32);
}

void ArgumentCheck::compute_elements(std::string_view name, const Tensor& tensor, std::int64_t count) const {
  elements(name, tensor, count, is_compute(tensor.dtype()) ? tensor.dtype() : DType::f32);
}

void ArgumentCheck::that(bool condition, std::string_view what) const {
  if (!condition) fail(fmt::format("{}: {}", op_, what));
}

bool ArgumentCheck::type_and_place(const Tensor& tensor, DType dtype) const {
  return tensor.dtype() == dtype && (tensor.device() == stream_.device() || stream_.planning());
}

bool ArgumentCheck::is_compute(DType dtype) const {
  return dtype == DType::f32 || (dtype == DType::bf16 && stream_.device().kind != DeviceKind::cpu);
}

void ArgumentCheck::refuse(std::string_view name, const Tensor& tensor, DType dtype, const std::string& shape) const {
  if (!tensor) fail(fmt::format("{}: {} is absent, expected {} {}", op_, name, name_of(dtype), shape));
  if (tensor.device() != stream_.device() && !stream_.planning()) {
    fail(fmt::format("{}: {} lies on {}, the stream works on {}", op_, name, name_of(tensor.device()),
                     name_of(stream_.device())));
  }
  fail(fmt::format("{}: {} is {} {}, expected {} {}", op_, name, name_of(tensor.dtype()), to_string(tensor.shape()),
                   name_of(dtype), shape));
}

}  // namespace dm
