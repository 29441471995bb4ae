// Shapes, views of views, and what both refuse.
#include "runtime/tensor.h"

#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace dm {
namespace {

std::string message_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing was thrown";
}

TEST(Shape, ExtentsCountFromBothEnds) {
  const Shape shape{2, 40, 64};
  EXPECT_EQ(shape.rank(), 3);
  EXPECT_EQ(shape[0], 2);
  EXPECT_EQ(shape[-1], 64);
  EXPECT_EQ(shape[-3], 2);
  EXPECT_EQ(shape.numel(), 2 * 40 * 64);
  EXPECT_EQ(to_string(shape), "[2, 40, 64]");
  EXPECT_EQ(to_string(Shape{}), "[]");
}

TEST(Shape, EmptyAndLargeShapesCountTheirElements) {
  EXPECT_EQ(Shape{}.numel(), 0);
  EXPECT_EQ((Shape{3, 0, 5}.numel()), 0);
  EXPECT_EQ((Shape{1, 1}.numel()), 1);
  EXPECT_EQ((Shape{1 << 20, 1 << 20}.numel()), std::int64_t{1} << 40);
}

TEST(Shape, ComparesRankAndExtents) {
  EXPECT_EQ((Shape{2, 3}), (Shape{2, 3}));
  EXPECT_NE((Shape{2, 3}), (Shape{3, 2}));
  EXPECT_NE((Shape{2}), (Shape{2, 0}));
  EXPECT_NE((Shape{2}), (Shape{2, 1}));
}

TEST(Shape, RefusesWhatIsNotAShape) {
  EXPECT_EQ(message_of([] { (void)Shape{2, 3}[2]; }), "axis outside the shape");
  EXPECT_EQ(message_of([] { (void)Shape{2, 3}[-3]; }), "axis outside the shape");
  EXPECT_EQ(message_of([] { Shape{1, 2, 3, 4, 5}; }), "a shape has at most four axes");
  EXPECT_EQ(message_of([] { Shape({1, 2, 3, 4}).push_back(5); }), "a shape has at most four axes");
  EXPECT_EQ(message_of([] { Shape{-1}; }), "a negative extent");
}

class Views : public ::testing::Test {
 protected:
  Views() : numbers(2 * 3 * 4) { std::iota(numbers.begin(), numbers.end(), 0); }
  std::vector<std::int32_t> numbers;
  Tensor tensor = Tensor::of(numbers.data(), {2, 3, 4});
};

TEST_F(Views, DescribesItsMemory) {
  EXPECT_TRUE(tensor);
  EXPECT_EQ(tensor.numel(), 24);
  EXPECT_EQ(tensor.bytes(), 96);
  EXPECT_EQ(tensor.rows(), 6);
  EXPECT_EQ(tensor.size(-1), 4);
  EXPECT_EQ(tensor.dtype(), DType::i32);
  EXPECT_EQ(tensor.device(), Device::cpu());
  EXPECT_EQ(tensor.as<std::int32_t>(), numbers.data());
}

TEST_F(Views, AnAbsentTensorIsEmpty) {
  const Tensor absent;
  EXPECT_FALSE(absent);
  EXPECT_EQ(absent.numel(), 0);
  EXPECT_EQ(absent.rows(), 0);
  EXPECT_EQ(absent.bytes(), 0);
  EXPECT_EQ(absent.data(), nullptr);
}

TEST_F(Views, ATensorWithoutElementsIsPresent) {
  const Tensor empty = Tensor::of(numbers.data(), {0, 4});
  EXPECT_TRUE(empty);
  EXPECT_EQ(empty.rows(), 0);
  EXPECT_EQ((Tensor::of(numbers.data(), {3, 0}).rows()), 0);
}

TEST_F(Views, SlicesAreEntriesOfTheFirstAxis) {
  const Tensor second = tensor.slice(1, 1);
  EXPECT_EQ(second.shape(), (Shape{1, 3, 4}));
  EXPECT_EQ(second.as<std::int32_t>()[0], 12);
  EXPECT_EQ(tensor.reshaped({6, 4}).slice(2, 3).as<std::int32_t>()[0], 8);
  EXPECT_EQ(tensor.slice(2, 0).numel(), 0);
}

TEST_F(Views, FlatRangesAndReshapesShareTheMemory) {
  EXPECT_EQ(tensor.flat().shape(), Shape{24});
  EXPECT_EQ(tensor.flat(5, 7).shape(), Shape{7});
  EXPECT_EQ(tensor.flat(5, 7).as<std::int32_t>()[0], 5);
  tensor.reshaped({4, 6}).flat(23, 1).as<std::int32_t>()[0] = -1;
  EXPECT_EQ(numbers.back(), -1);
}

TEST_F(Views, RefusesWhatLiesOutside) {
  EXPECT_EQ(message_of([&] { (void)tensor.reshaped({5, 5}); }), "cannot view a tensor of shape [2, 3, 4] as [5, 5]");
  for (const auto& range : {std::pair<int, int>{0, 3}, {2, 1}, {-1, 1}, {0, -1}}) {
    EXPECT_EQ(message_of([&] { (void)tensor.slice(range.first, range.second); }), "slice outside the tensor");
  }
  for (const auto& range : {std::pair<int, int>{0, 25}, {24, 1}, {-1, 1}, {0, -1}}) {
    EXPECT_EQ(message_of([&] { (void)tensor.flat(range.first, range.second); }), "flat range outside the tensor");
  }
  EXPECT_EQ(message_of([] { (void)Tensor().slice(0, 0); }), "slice outside the tensor");
  EXPECT_EQ(message_of([&] { (void)tensor.as<float>(); }), "tensor read with another element type than it has");
}

TEST_F(Views, ATensorOfAPlanHasShapesAndNoMemory) {
  const Tensor planned(nullptr, {8, 4}, DType::f32, Device::plan());
  EXPECT_EQ(planned.slice(3, 2).data(), nullptr);
  EXPECT_EQ(planned.flat(3, 2).data(), nullptr);
  EXPECT_EQ(planned.slice(3, 2).device(), Device::plan());
}

}  // namespace
}  // namespace dm
