// Laying parameters out in blocks, and filling them with their first values.
#include "model/parameter_store.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "runtime/random.h"

namespace dm {
namespace {

/// Elements between two aligned starts: 256 bytes of float32.
constexpr std::int64_t kAlignedElements = 64;

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

float initial_value(const Initializer& init, const RandomStream& random, std::int64_t index, std::int64_t column) {
  const auto counter = static_cast<std::uint64_t>(index);
  switch (init.kind) {
    case Initializer::Kind::constant:
      return init.scale;
    case Initializer::Kind::normal:
      return init.scale * random.normal(counter);
    case Initializer::Kind::uniform:
      return init.scale * (2.0f * random.uniform(counter) - 1.0f);
    case Initializer::Kind::log_state:
      return static_cast<float>(std::log(static_cast<double>(column + 1)));
    case Initializer::Kind::dt_bias: {
      const double low = std::log(1e-3), high = std::log(1e-1);
      const double dt = std::max(std::exp(low + (high - low) * static_cast<double>(random.uniform(counter))), 1e-4);
      return static_cast<float>(dt + std::log(-std::expm1(-dt)));  // softplus of this is dt
    }
  }
  return 0;
}

/// Fills `entries` with ranges relative to their own block and returns the sizes of the blocks.
std::vector<std::int64_t> lay_out(std::vector<ParameterSpec> specs, int tensor_size,
                                  std::vector<ParameterStore::Entry>& entries) {
  std::vector<std::int64_t> block_sizes;
  for (ParameterSpec& spec : specs) {
    if (entries.empty() || spec.block != entries.back().spec.block) {
      require(spec.block == static_cast<int>(block_sizes.size()), "parameters are listed block by block");
      block_sizes.push_back(0);
    }
    const Shape local = local_shape(spec.name, spec.shape, spec.shard, tensor_size);
    const std::int64_t begin = round_up(block_sizes.back(), kAlignedElements);
    block_sizes.back() = begin + local.numel();
    entries.push_back({std::move(spec), local, {begin, local.numel()}});
  }
  return block_sizes;
}

}  // namespace

ParameterStore::ParameterStore(std::vector<ParameterSpec> specs, StorePlace place, Device device, MemoryReport& report)
    : place_(place), partition_(lay_out(std::move(specs), place.tensor_size, entries_), place.data_rank, place.data_size) {
  for (Entry& entry : entries_) entry.range.begin += partition_.block(entry.spec.block).begin;
  values_ = Buffer("parameters", partition_.elements() * size_of(DType::f32), device, report);
  gradients_ = Buffer("gradients", partition_.elements() * size_of(DType::f32), device, report);
}

Parameter ParameterStore::parameter(std::string_view name) const {
  const auto at =
      std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry.spec.name == name; });
  if (at == entries_.end()) fail(fmt::format("the model has no parameter {}", name));
  const auto view = [&](const Tensor& flat) { return flat.flat(at->range.begin, at->range.size).reshaped(at->local_shape); };
  return {view(values()), view(gradients())};
}

void ParameterStore::initialize(std::uint64_t seed) {
  float* values = this->values().as<float>();
  for (const Entry& entry : entries_) {
    const RandomStream random(seed, entry.spec.name);
    const std::int64_t columns = as_matrix(entry.spec.shape)[1];
    float* out = values + entry.range.begin;
    for (const Rectangle& part : global_rectangles(entry.spec.shape, entry.spec.shard, place_.tensor_rank,
                                                   place_.tensor_size, 0, entry.range.size)) {
      for (std::int64_t row = part.row; row < part.row + part.rows; ++row) {
        for (std::int64_t column = part.column; column < part.column + part.columns; ++column) {
          *out++ = initial_value(entry.spec.init, random, row * columns + column, column);
        }
      }
    }
  }
}

}  // namespace dm
