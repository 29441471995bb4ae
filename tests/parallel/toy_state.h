// A small model's state cut over a data × tensor grid in every way that the trainer cuts, for the checkpoint tests.
#pragma once

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "parallel/checkpoint.h"
#include "parallel/shard.h"

namespace dm {

struct ToyParameter {
  std::string name;
  Shape shape;
  Shard shard;
};

inline const std::vector<ToyParameter>& toy_parameters() {
  static const std::vector<ToyParameter> parameters{
      {"embedding.weight", {12, 5}, {Shard::Axis::rows, 1}}, {"in_proj.weight", {16, 3}, {Shard::Axis::rows, 2}},
      {"x_proj.weight", {5, 8}, {Shard::Axis::columns, 1}},  {"conv1d.weight", {8, 1, 3}, {Shard::Axis::rows, 1}},
      {"norm.weight", {7}, {Shard::Axis::none, 1}},
  };
  return parameters;
}

inline constexpr StateKind kStateKinds[] = {StateKind::value, StateKind::first_moment, StateKind::second_moment};

/// The value of a global element: exact in float and different for every element.
inline float toy_value(std::size_t parameter, StateKind kind, std::int64_t row, std::int64_t column, int version) {
  return static_cast<float>(((static_cast<int>(parameter) * 3 + static_cast<int>(kind)) * 32 + row) * 32 + column) +
         static_cast<float>(version) * 0.125f;
}

/// What one rank of a grid owns (each element once over the grid) or wants (its whole tensor shard).
class ToyState {
 public:
  /// The part of the state that rank (data, tensor) saves: a slice of the concatenated local parameters as ZeRO cuts them,
  /// at random places that all ranks draw alike from `seed`. Replicated parameters belong to tensor rank 0.
  static ToyState owned(int data, int data_size, int tensor, int tensor_size, unsigned seed, int version = 0) {
    ToyState state;
    std::int64_t total = 0;
    for (const ToyParameter& p : toy_parameters()) total += local_size(p, tensor, tensor_size);
    std::mt19937 random(seed + static_cast<unsigned>(tensor));
    std::vector<std::int64_t> cuts{0, total};
    for (int d = 1; d < data_size; ++d) cuts.push_back(std::uniform_int_distribution<std::int64_t>(0, total)(random));
    std::sort(cuts.begin(), cuts.end());
    state.add(cuts[static_cast<std::size_t>(data)], cuts[static_cast<std::size_t>(data) + 1], tensor, tensor_size);
    state.fill(version);
    return state;
  }

  /// Everything that rank `tensor` of a tensor group holds, with its memory cleared to NaN.
  static ToyState wanted(int tensor, int tensor_size) {
    ToyState state;
    std::int64_t total = 0;
    for (const ToyParameter& p : toy_parameters()) total += local_size(p, 0, tensor_size);
    state.add(0, total, tensor, tensor_size, true);
    return state;
  }

  const std::vector<StatePiece>& pieces() const { return pieces_; }
  std::vector<StatePiece>& pieces() { return pieces_; }

  void fill(int version) {
    for (const StatePiece& piece : pieces_) visit(piece, version, [](float& at, float value) { at = value; });
  }
  /// How many elements are not those of `version`.
  std::int64_t differences(int version) const {
    std::int64_t count = 0;
    for (const StatePiece& piece : pieces_) {
      visit(piece, version, [&](const float& at, float value) { count += at == value ? 0 : 1; });
    }
    return count;
  }

 private:
  static std::int64_t local_size(const ToyParameter& p, int tensor, int tensor_size) {
    if (p.shard.axis == Shard::Axis::none && tensor != 0) return 0;
    return local_shape(p.name, p.shape, p.shard, tensor_size).numel();
  }

  // Elements [begin, end) of the local parameters one after the other.
  void add(std::int64_t begin, std::int64_t end, int tensor, int tensor_size, bool with_replicas = false) {
    std::int64_t at = 0;
    for (const ToyParameter& p : toy_parameters()) {
      const std::int64_t size = local_size(p, with_replicas ? 0 : tensor, tensor_size);
      const std::int64_t first = std::clamp(begin - at, std::int64_t{0}, size);
      const std::int64_t last = std::clamp(end - at, std::int64_t{0}, size);
      at += size;
      if (first == last) continue;
      for (const StateKind kind : kStateKinds) {
        for (const Rectangle& where : global_rectangles(p.shape, p.shard, tensor, tensor_size, first, last - first)) {
          memory_.push_back(std::make_unique<std::vector<float>>(where.numel(), std::numeric_limits<float>::quiet_NaN()));
          pieces_.push_back({p.name, kind, p.shape, where, Tensor::of(memory_.back()->data(), {where.numel()})});
        }
      }
    }
  }

  template <class Visit>
  static void visit(const StatePiece& piece, int version, const Visit& look) {
    const auto& all = toy_parameters();
    const auto index = static_cast<std::size_t>(
        std::find_if(all.begin(), all.end(), [&](const ToyParameter& p) { return p.name == piece.parameter; }) -
        all.begin());
    for (std::int64_t i = 0; i < piece.where.numel(); ++i) {
      look(piece.data.as<float>()[i], toy_value(index, piece.kind, piece.where.row + i / piece.where.columns,
                                                piece.where.column + i % piece.where.columns, version));
    }
  }

  std::vector<std::unique_ptr<std::vector<float>>> memory_;
  std::vector<StatePiece> pieces_;
};

}  // namespace dm
