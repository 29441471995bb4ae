// What the tests of CUDA ops need: tensors that live on both devices, between guard words, and a run of both twins of an op.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "runtime/random.h"
#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm::oracle {

/// Bounds on the error by norm. bf16: one rounding of the result (2⁻⁹ at most, 1.7e-3 by norm) and a little.
inline constexpr double kFloat32Bound = 1e-5, kBFloat16Bound = 4e-3;

/// One tensor with the same values on the CPU (float32 or int32) and on the GPU (there also bf16, then the CPU's values are
/// rounded to it). On the GPU it stands between guard words, `offset` elements after a multiple of 256 bytes.
class Twin {
 public:
  Twin(Stream& gpu, Shape shape, DType dtype, std::int64_t offset, std::vector<float> values)
      : gpu_(gpu), shape_(shape), dtype_(dtype), lead_(kGuard + offset * size_of(dtype)), start_(std::move(values)) {
    require(static_cast<std::int64_t>(start_.size()) == shape.numel(), "a twin has as many values as its shape");
    if (dtype == DType::bf16) {
      for (float& value : start_) value = static_cast<float>(BFloat16(value));
    }
    image_.assign(static_cast<std::size_t>(2 * kGuard + offset * size_of(dtype) + bytes()), std::byte{0xA5});
    for (std::size_t i = 0; i < start_.size(); ++i) put(i, start_[i]);
    memory_ = cuda::allocate(0, static_cast<std::int64_t>(image_.size()));
    require(memory_ != nullptr, "the GPU has no memory left for a test");
    floats_ = start_;
    integers_.assign(start_.begin(), dtype == DType::i32 ? start_.end() : start_.begin());
    reset();
  }
  Twin(const Twin&) = delete;
  Twin& operator=(const Twin&) = delete;
  ~Twin() { cuda::release(0, memory_); }

  /// Gives the GPU the values of the start again.
  void reset() {
    cuda::copy(*gpu_.native(), memory_, image_.data(), static_cast<std::int64_t>(image_.size()));
    gpu_.synchronize();
  }
  Tensor cpu() { return dtype_ == DType::i32 ? Tensor::of(integers_.data(), shape_) : Tensor::of(floats_.data(), shape_); }
  Tensor gpu() const { return Tensor(static_cast<std::byte*>(memory_) + lead_, shape_, dtype_, Device::cuda(0)); }

  /// The GPU's memory, guard words included.
  std::vector<std::byte> memory() const {
    std::vector<std::byte> now(image_.size());
    cuda::copy(*gpu_.native(), now.data(), memory_, static_cast<std::int64_t>(now.size()));
    gpu_.synchronize();
    return now;
  }
  const std::vector<std::byte>& start() const { return image_; }
  bool guards_intact(const std::vector<std::byte>& now) const {
    const auto lead = static_cast<std::ptrdiff_t>(lead_), end = static_cast<std::ptrdiff_t>(lead_ + bytes());
    return std::equal(now.begin(), now.begin() + lead, image_.begin()) &&
           std::equal(now.begin() + end, now.end(), image_.begin() + end);
  }

  /// The error by norm of the GPU's values against the CPU's, and no element further off than 16 bounds of the largest.
  /// Equal infinities and two NaN are no error.
  ::testing::AssertionResult agrees(const std::vector<std::byte>& now, double bound) const {
    double difference = 0, norm = 0, largest = 0, worst = 0;
    std::size_t at = 0;
    for (std::size_t i = 0; i < start_.size(); ++i) {
      const double actual = get(now, i), expected = dtype_ == DType::i32 ? integers_[i] : static_cast<double>(floats_[i]);
      if (actual == expected || (std::isnan(actual) && std::isnan(expected))) {
        if (std::isfinite(expected)) norm += expected * expected, largest = std::max(largest, std::abs(expected));
        continue;
      }
      const double error = std::abs(actual - expected);
      if (!std::isfinite(error)) {
        return ::testing::AssertionFailure() << "element " << i << " is " << actual << ", expected " << expected;
      }
      difference += error * error, norm += expected * expected;
      largest = std::max(largest, std::abs(expected));
      if (error > worst) worst = error, at = i;
    }
    const double relative = std::sqrt(norm > 0 ? difference / norm : difference);
    if (relative <= bound && worst <= 16 * bound * (largest > 0 ? largest : 1)) return ::testing::AssertionSuccess();
    return ::testing::AssertionFailure() << "error by norm " << relative << " of " << bound << ", worst at element " << at
                                         << ": " << get(now, at) << ", off by " << worst;
  }

 private:
  static constexpr std::int64_t kGuard = 256;

  std::int64_t bytes() const { return shape_.numel() * size_of(dtype_); }
  void put(std::size_t i, float value) {
    const BFloat16 rounded(value);
    const auto integer = dtype_ == DType::i32 ? static_cast<std::int32_t>(value) : 0;
    const void* from = dtype_ == DType::f32   ? static_cast<const void*>(&value)
                       : dtype_ == DType::i32 ? static_cast<const void*>(&integer)
                                              : static_cast<const void*>(&rounded);
    std::memcpy(image_.data() + lead_ + static_cast<std::int64_t>(i) * size_of(dtype_), from,
                static_cast<std::size_t>(size_of(dtype_)));
  }
  double get(const std::vector<std::byte>& image, std::size_t i) const {
    const std::byte* from = image.data() + lead_ + static_cast<std::int64_t>(i) * size_of(dtype_);
    const auto read = [from](auto value) {
      std::memcpy(&value, from, sizeof value);
      return value;
    };
    if (dtype_ == DType::i32) return read(std::int32_t{});
    return static_cast<double>(dtype_ == DType::f32 ? read(0.0f) : static_cast<float>(read(BFloat16{})));
  }

  Stream& gpu_;
  Shape shape_;
  DType dtype_;
  std::int64_t lead_;
  std::vector<float> start_, floats_;
  std::vector<std::int32_t> integers_;
  std::vector<std::byte> image_;
  void* memory_ = nullptr;
};

/// Picks the tensor of one device; a null twin is an absent tensor.
struct Side {
  bool on_gpu;
  Tensor operator()(Twin& twin) const { return on_gpu ? twin.gpu() : twin.cpu(); }
  Tensor operator()(Twin* twin) const { return twin ? (*this)(*twin) : Tensor(); }
};

/// A test of CUDA ops against their CPU twins; skipped where there is no GPU.
class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "skipped: no GPU";
    gpu_.emplace(Device::cuda(0));
  }

  /// Tensors made from now on start this many elements after a multiple of 256 bytes.
  void set_offset(std::int64_t elements) { offset_ = elements; }
  /// mean + deviation · normal, from the stream of this name.
  Twin& random(const std::string& name, Shape shape, DType dtype = DType::f32, float deviation = 1, float mean = 0) {
    const RandomStream stream(1, name);
    std::vector<float> values(static_cast<std::size_t>(shape.numel()));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = mean + deviation * stream.normal(i);
    return of(shape, std::move(values), dtype);
  }
  /// An output that must be overwritten.
  Twin& overwritten(Shape shape, DType dtype = DType::f32) {
    return of(shape, std::vector<float>(static_cast<std::size_t>(shape.numel()), std::nanf("")), dtype);
  }
  Twin& of(Shape shape, std::vector<float> values, DType dtype = DType::f32) {
    return twins_.emplace_back(*gpu_, shape, dtype, offset_, std::move(values));
  }
  /// Integers in [0, limit).
  Twin& tokens(Shape shape, std::int64_t limit) {
    const RandomStream stream(1, "tokens");
    std::vector<float> values(static_cast<std::size_t>(shape.numel()));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::floor(stream.uniform(i) * static_cast<float>(limit));
    return of(shape, std::move(values), DType::i32);
  }
  /// Forgets all tensors.
  void clear() { twins_.clear(); }
  Stream& gpu() { return *gpu_; }

  /// An output with the bound on its error; without one, that of its dtype.
  struct Output {
    Output(Twin& twin) : twin(&twin) {}  // NOLINT(google-explicit-constructor): a list of outputs
    Output(Twin& twin, double bound) : twin(&twin), bound(bound) {}
    Twin* twin;
    std::optional<double> bound;
  };

  /// Calls work(stream, side) on the CPU, and twice on the GPU from the same start. The outputs must agree with the CPU's
  /// and be the same bits both times; guard words and every other tensor of the test must be as before.
  template <class Work>
  void compare(const Work& work, std::initializer_list<Output> outputs, const std::string& what) {
    work(cpu_, Side{false});
    std::list<std::vector<std::byte>> first;
    for (const bool again : {false, true}) {
      if (again) {
        for (Twin& twin : twins_) twin.reset();
      }
      work(*gpu_, Side{true});
      gpu_->synchronize();
      for (const Output& output : outputs) {
        std::vector<std::byte> now = output.twin->memory();
        if (again) {
          EXPECT_EQ(now, first.front()) << what << ": other bits in the second run, output " << index(outputs, output);
          first.pop_front();
        } else {
          const double bound =
              output.bound.value_or(output.twin->gpu().dtype() == DType::bf16 ? kBFloat16Bound : kFloat32Bound);
          EXPECT_TRUE(output.twin->agrees(now, bound)) << what << ", output " << index(outputs, output);
          first.push_back(std::move(now));
        }
      }
    }
    for (const Twin& twin : twins_) {
      const std::vector<std::byte> now = twin.memory();
      EXPECT_TRUE(twin.guards_intact(now)) << what << ": guard words around a tensor were overwritten";
      const bool written = std::any_of(outputs.begin(), outputs.end(), [&](const Output& o) { return o.twin == &twin; });
      EXPECT_TRUE(written || now == twin.start()) << what << ": an input was written";
    }
  }

 private:
  static std::ptrdiff_t index(std::initializer_list<Output> outputs, const Output& output) {
    return &output - outputs.begin();
  }

  Stream cpu_{Device::cpu()};
  std::optional<Stream> gpu_;
  std::list<Twin> twins_;
  std::int64_t offset_ = 0;
};

/// Both compute dtypes.
inline constexpr DType kComputeTypes[] = {DType::f32, DType::bf16};

}  // namespace dm::oracle
