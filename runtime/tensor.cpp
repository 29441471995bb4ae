// Shapes in words, and views of views.
#include "runtime/tensor.h"

namespace dm {

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int axis = 0; axis < shape.rank(); ++axis) text += (axis ? ", " : "") + std::to_string(shape[axis]);
  return text + "]";
}

Tensor Tensor::reshaped(Shape shape) const {
  if (shape.numel() != numel()) fail("cannot view a tensor of shape " + to_string(shape_) + " as " + to_string(shape));
  return Tensor(data_, shape, dtype_, device_);
}

Tensor Tensor::slice(std::int64_t begin, std::int64_t count) const {
  require(shape_.rank() > 0 && begin >= 0 && count >= 0 && begin + count <= shape_[0], "slice outside the tensor");
  Shape part{count};
  std::int64_t stride = size_of(dtype_);
  for (int axis = 1; axis < shape_.rank(); ++axis) {
    part.push_back(shape_[axis]);
    stride *= shape_[axis];
  }
  return Tensor(data_ ? data_ + begin * stride : nullptr, part, dtype_, device_);
}

Tensor Tensor::flat(std::int64_t begin, std::int64_t count) const {
  require(begin >= 0 && count >= 0 && begin + count <= numel(), "flat range outside the tensor");
  return Tensor(data_ ? data_ + begin * size_of(dtype_) : nullptr, {count}, dtype_, device_);
}

}  // namespace dm
