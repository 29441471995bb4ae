// How a global parameter is cut over the tensor group, and where a run of local elements lies in the global tensor.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/tensor.h"

namespace dm {

/// The cut of one parameter. With `parts` > 1 the rows are that many equal stacked blocks and each rank takes its share of
/// every block (in_proj: x half and z half).
struct Shard {
  enum class Axis : std::uint8_t { none, rows, columns };
  Axis axis = Axis::none;  ///< none: every rank holds the whole parameter.
  int parts = 1;
};

/// A rectangle of a parameter seen as [rows, columns]: first axis by all the others.
struct Rectangle {
  std::int64_t row = 0;
  std::int64_t column = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;

  std::int64_t numel() const { return rows * columns; }
  friend bool operator==(const Rectangle&, const Rectangle&) = default;
};

/// `shape` as [first axis, product of the others].
Shape as_matrix(const Shape& shape);

/// The shape that one of `ranks` tensor ranks holds. Throws Error naming `name` when the cut axis does not divide.
Shape local_shape(const std::string& name, const Shape& global, Shard shard, int ranks);

/// The global rectangles of local elements [begin, begin + count), in local order: each is contiguous in local memory and
/// they follow one another. At most three for each part of the shard (a partial first row, whole rows, a partial last row).
std::vector<Rectangle> global_rectangles(const Shape& global, Shard shard, int rank, int ranks, std::int64_t begin,
                                         std::int64_t count);

}  // namespace dm
