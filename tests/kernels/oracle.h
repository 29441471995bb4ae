// What every op test needs: tensors between guard words, errors by norm against a double oracle, finite differences.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "runtime/random.h"
#include "runtime/tensor.h"

namespace dm::oracle {

/// A tensor on the host with guard words on both sides; the destructor reports an op that wrote over them. The elements
/// start at an address that is no multiple of a vector register.
template <class T>
class Guarded {
 public:
  /// All elements are `value`; give outputs that must be overwritten a NaN.
  Guarded(Shape shape, T value) : shape_(shape), words_(static_cast<std::size_t>(shape.numel()) + 2 * kGuard, value) {
    for (std::size_t i = 0; i < kGuard; ++i) words_[i] = words_[words_.size() - 1 - i] = guard(i);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { EXPECT_TRUE(intact()) << "guard words around a tensor " << to_string(shape_) << " were overwritten"; }

  Tensor tensor() { return Tensor::of(words_.data() + kGuard, shape_); }
  std::span<T> values() { return {words_.data() + kGuard, words_.size() - 2 * kGuard}; }
  std::span<const T> values() const { return {words_.data() + kGuard, words_.size() - 2 * kGuard}; }
  T& operator[](std::int64_t i) { return words_[kGuard + static_cast<std::size_t>(i)]; }
  T operator[](std::int64_t i) const { return words_[kGuard + static_cast<std::size_t>(i)]; }
  std::vector<double> as_double() const { return {values().begin(), values().end()}; }

 private:
  static constexpr std::size_t kGuard = 19;
  static T guard(std::size_t i) { return static_cast<T>(-77777 - static_cast<int>(i)); }
  bool intact() const {
    for (std::size_t i = 0; i < kGuard; ++i) {
      if (words_[i] != guard(i) || words_[words_.size() - 1 - i] != guard(i)) return false;
    }
    return true;
  }

  Shape shape_;
  std::vector<T> words_;
};

/// Element i is mean + deviation · normal(i) of the stream (seed 1, name): the same numbers in every run.
class Random : public Guarded<float> {
 public:
  Random(const std::string& name, Shape shape, float deviation = 1.0f, float mean = 0.0f) : Guarded<float>(shape, 0.0f) {
    const RandomStream stream(1, name);
    for (std::int64_t i = 0; i < shape.numel(); ++i)
      (*this)[i] = mean + deviation * stream.normal(static_cast<std::uint64_t>(i));
  }
};

/// An output that an op must overwrite: NaN everywhere.
class Overwritten : public Guarded<float> {
 public:
  explicit Overwritten(Shape shape) : Guarded<float>(shape, std::numeric_limits<float>::quiet_NaN()) {}
};

/// ‖actual − expected‖ / ‖expected‖, or ‖actual‖ when all of expected is zero. NaN and infinite differences come through.
template <class T>
double relative_error(std::span<const T> actual, std::span<const double> expected) {
  if (actual.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const double d = static_cast<double>(actual[i]) - expected[i];
    difference += d * d;
    norm += expected[i] * expected[i];
  }
  return std::sqrt(norm > 0 ? difference / norm : difference);
}

/// EXPECT_CLOSE(op output, oracle's vector<double>, bound on relative_error); the output's name is in the failure message.
#define EXPECT_CLOSE(actual, expected, bound)                                                                           \
  EXPECT_LT(::dm::oracle::relative_error(std::span(std::as_const(actual).values()), std::span<const double>(expected)), \
            bound)

/// The same bits, so that NaN equals NaN and 0 differs from −0.
inline bool same_bits(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::bit_cast<std::uint32_t>(a[i]) != std::bit_cast<std::uint32_t>(b[i])) return false;
  }
  return true;
}

/// d loss / d x by central differences in double: error about 1e-9 for a smooth loss of order one. `loss` reads `x`
/// through the caller's reference; x is restored.
inline std::vector<double> finite_differences(std::vector<double>& x, const std::function<double()>& loss,
                                              double step = 1e-5) {
  std::vector<double> gradient(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double kept = x[i];
    x[i] = kept + step;
    const double above = loss();
    x[i] = kept - step;
    const double below = loss();
    x[i] = kept;
    gradient[i] = (above - below) / (2 * step);
  }
  return gradient;
}

/// The sentence of the Error that `act` throws; "nothing was thrown" when it throws none.
inline std::string error_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

/// Σ a ⊙ b: with b the cotangent of a, the loss whose gradient a backward computes.
inline double dot(std::span<const double> a, std::span<const double> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace dm::oracle
