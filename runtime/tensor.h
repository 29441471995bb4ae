// A non-owning view of a contiguous row-major array: pointer, shape, element type, device.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "runtime/device.h"
#include "runtime/dtype.h"
#include "runtime/error.h"

namespace dm {

/// Up to four extents, slowest first. A rank-0 shape has no elements.
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  constexpr Shape() = default;
  constexpr Shape(std::initializer_list<std::int64_t> extents) {
    require(extents.size() <= kMaxRank, "a shape has at most four axes");
    for (std::int64_t extent : extents) push_back(extent);
  }

  constexpr int rank() const { return rank_; }
  /// Extent of `axis`; negative axes count from the last.
  constexpr std::int64_t operator[](int axis) const {
    const int at = axis < 0 ? axis + rank_ : axis;
    require(at >= 0 && at < rank_, "axis outside the shape");
    return extents_[static_cast<std::size_t>(at)];
  }
  constexpr std::int64_t numel() const {
    std::int64_t product = rank_ == 0 ? 0 : 1;
    for (int axis = 0; axis < rank_; ++axis) product *= extents_[static_cast<std::size_t>(axis)];
    return product;
  }
  constexpr void push_back(std::int64_t extent) {
    require(rank_ < kMaxRank, "a shape has at most four axes");
    require(extent >= 0, "a negative extent");
    extents_[static_cast<std::size_t>(rank_++)] = extent;
  }

  friend constexpr bool operator==(const Shape&, const Shape&) = default;

 private:
  std::array<std::int64_t, kMaxRank> extents_{};
  int rank_ = 0;
};

/// "[2, 40, 64]"
std::string to_string(const Shape& shape);

/// A view does not own its memory; constness is shallow, as of a pointer. Ops take tensors by const reference and
/// their contracts say which are written. A default-constructed tensor is absent (`!tensor`), for optional arguments.
class Tensor {
 public:
  Tensor() = default;
  Tensor(void* data, Shape shape, DType dtype, Device device)
      : data_(static_cast<std::byte*>(data)), shape_(shape), dtype_(dtype), device_(device) {}
  /// A view of host memory of a standard element type.
  template <class T>
  static Tensor of(T* data, Shape shape) {
    return Tensor(data, shape, DTypeOf<T>::value, Device::cpu());
  }

  explicit operator bool() const { return shape_.rank() > 0; }
  const Shape& shape() const { return shape_; }
  std::int64_t size(int axis) const { return shape_[axis]; }
  std::int64_t numel() const { return shape_.numel(); }
  std::int64_t bytes() const { return numel() * size_of(dtype_); }
  /// Product of all extents but the last: the number of tokens of an activation.
  std::int64_t rows() const { return shape_.rank() == 0 || shape_[-1] == 0 ? 0 : numel() / shape_[-1]; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }

  /// The elements as T; throws when T is not the tensor's element type.
  template <class T>
  T* as() const {
    require(DTypeOf<T>::value == dtype_, "tensor read with another element type than it has");
    return reinterpret_cast<T*>(data_);
  }
  void* data() const { return data_; }

  /// The same elements under another shape of the same size.
  Tensor reshaped(Shape shape) const;
  /// Entries [begin, begin + count) of the first axis.
  Tensor slice(std::int64_t begin, std::int64_t count) const;
  /// Elements [begin, begin + count) of the flattened tensor, as a rank-1 tensor.
  Tensor flat(std::int64_t begin, std::int64_t count) const;
  Tensor flat() const { return flat(0, numel()); }

 private:
  std::byte* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::f32;
  Device device_;
};

}  // namespace dm
