// Row and column arithmetic of shards.
#include "parallel/shard.h"

#include <algorithm>

#include <fmt/format.h>

namespace dm {

Shape as_matrix(const Shape& shape) {
  require(shape.rank() >= 1, "a parameter has at least one axis");
  return {shape[0], shape[0] == 0 ? 0 : shape.numel() / shape[0]};
}

Shape local_shape(const std::string& name, const Shape& global, Shard shard, int ranks) {
  const int axis = shard.axis == Shard::Axis::columns ? 1 : 0;
  const std::int64_t pieces = shard.axis == Shard::Axis::none ? 1 : std::int64_t{ranks} * shard.parts;
  if (global[axis] % pieces != 0) {
    fail(fmt::format("{} of shape {} does not divide over {} tensor ranks; change --parallel.tensor or the model's width",
                     name, to_string(global), ranks),
         ExitCode::usage);
  }
  if (shard.axis == Shard::Axis::none) return global;
  Shape local;
  for (int a = 0; a < global.rank(); ++a) local.push_back(a == axis ? global[a] / ranks : global[a]);
  return local;
}

std::vector<Rectangle> global_rectangles(const Shape& global, Shard shard, int rank, int ranks, std::int64_t begin,
                                         std::int64_t count) {
  const Shape whole = as_matrix(global);
  const bool by_rows = shard.axis == Shard::Axis::rows;
  const bool by_columns = shard.axis == Shard::Axis::columns;
  const std::int64_t columns = by_columns ? whole[1] / ranks : whole[1];
  const std::int64_t first_column = by_columns ? rank * columns : 0;
  const int parts = by_rows ? shard.parts : 1;
  const std::int64_t part_rows = whole[0] / parts;                          // rows of a part in the global tensor
  const std::int64_t local_rows = by_rows ? part_rows / ranks : part_rows;  // of which this rank holds these
  require(begin >= 0 && count >= 0 && begin + count <= local_rows * parts * columns, "elements outside the shard");

  std::vector<Rectangle> rectangles;
  for (std::int64_t at = begin, end = begin + count; at < end;) {
    const std::int64_t row = at / columns;
    const std::int64_t column = at % columns;
    const std::int64_t part = row / local_rows;
    const std::int64_t rows_left = (part + 1) * local_rows - row;
    Rectangle r;
    r.row = part * part_rows + (by_rows ? rank * local_rows : 0) + row % local_rows;
    r.column = first_column + column;
    if (column == 0 && end - at >= columns) {
      r.rows = std::min(rows_left, (end - at) / columns);
      r.columns = columns;
    } else {
      r.rows = 1;
      r.columns = std::min(columns - column, end - at);
    }
    at += r.numel();
    rectangles.push_back(r);
  }
  return rectangles;
}

}  // namespace dm
