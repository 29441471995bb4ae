// Laying parameters out in blocks, and filling them with their first values.
#include "model/parameter_store.h"

#include <algorithm>
#include <cmath>
#include <thread>

#include <fmt/format.h>

#include "kernels/elementwise.h"
#include "runtime/copy.h"
#include "runtime/host.h"
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

/// Writes the first values of elements [begin, begin + count) of `entry` on this rank to `out`, in local order.
void write_initial_values(const ParameterStore::Entry& entry, const StorePlace& place, std::uint64_t seed,
                          std::int64_t begin, std::int64_t count, float* out) {
  const RandomStream random(seed, entry.spec.name);
  const std::int64_t columns = as_matrix(entry.spec.shape)[1];
  for (const Rectangle& part :
       global_rectangles(entry.spec.shape, entry.spec.shard, place.tensor_rank, place.tensor_size, begin, count)) {
    for (std::int64_t row = part.row; row < part.row + part.rows; ++row) {
      for (std::int64_t column = part.column; column < part.column + part.columns; ++column) {
        *out++ = initial_value(entry.spec.init, random, row * columns + column, column);
      }
    }
  }
}

/// Threads that a rank may use while its GPU waits for it: its share of the cores. Ranks that compute on the CPU have one.
int initializing_threads(Device device) {
  if (device.kind == DeviceKind::cpu) return 1;
  return std::clamp(std::min(machine_cores() / std::max(cuda::device_count(), 1), usable_cores()), 1, 32);
}

/// Calls work(begin, count) for consecutive parts of [0, size), at the same time.
template <class Work>
void in_parallel(int threads, std::int64_t size, const Work& work) {
  const std::int64_t each = (size + threads - 1) / threads;
  std::vector<std::jthread> others;
  for (std::int64_t begin = each; begin < size; begin += each) {
    others.emplace_back([&work, begin, count = std::min(each, size - begin)] { work(begin, count); });
  }
  work(0, std::min(each, size));
}

}  // namespace

ParameterStore::ParameterStore(std::vector<ParameterSpec> specs, StorePlace place, Device device, MemoryReport& report,
                               DType compute)
    : place_(place),
      device_(device),
      compute_(compute),
      partition_(lay_out(std::move(specs), place.tensor_size, entries_), place.data_rank, place.data_size) {
  require(compute == DType::f32 || compute == DType::bf16, "parameters are float32 or bfloat16");
  for (Entry& entry : entries_) entry.range.begin += partition_.block(entry.spec.block).begin;
  constexpr std::int64_t kFloat = size_of(DType::f32);
  const std::int64_t small = partition_.elements() - matrix_elements();
  matrices_ = Buffer("parameters", matrix_elements() * size_of(compute), device, report);
  small_ = Buffer("parameters", small * kFloat, device, report);
  if (has_masters()) {
    masters_ = Buffer("master parameters", matrix_elements() / place.data_size * kFloat, device, report);
  }
  gradients_ = Buffer("gradients", partition_.elements() * kFloat, device, report);
}

Tensor ParameterStore::values(int block) const {
  const FlatRange range = partition_.block(block);
  if (block + 1 == partition_.blocks()) return small_.tensor({range.size}, DType::f32);
  return matrices_.tensor({matrix_elements()}, compute_).flat(range.begin, range.size);
}

Tensor ParameterStore::masters(int block) const {
  const FlatRange owned = partition_.owned(block);
  if (has_masters() && block + 1 < partition_.blocks()) {
    return masters_.tensor({matrix_elements() / place_.data_size}, DType::f32)
        .flat(partition_.owned_offset(block), owned.size);
  }
  return values(block).flat(owned.begin - partition_.block(block).begin, owned.size);
}

Parameter ParameterStore::parameter(std::string_view name) const {
  const auto at =
      std::find_if(entries_.begin(), entries_.end(), [&](const Entry& entry) { return entry.spec.name == name; });
  if (at == entries_.end()) fail(fmt::format("the model has no parameter {}", name));
  const FlatRange range = at->range;
  const std::int64_t in_block = range.begin - partition_.block(at->spec.block).begin;
  return {values(at->spec.block).flat(in_block, range.size).reshaped(at->local_shape),
          gradients().flat(range.begin, range.size).reshaped(at->local_shape)};
}

void ParameterStore::initialize(Stream& stream, std::uint64_t seed) {
  for (int block = 0; block < partition_.blocks(); ++block) {
    const FlatRange range = partition_.block(block), owned = partition_.owned(block);
    std::vector<float> staging(static_cast<std::size_t>(range.size));
    for (const Entry& entry : entries_) {
      if (entry.spec.block != block) continue;
      float* out = staging.data() + (entry.range.begin - range.begin);
      in_parallel(initializing_threads(device_), entry.range.size, [&](std::int64_t begin, std::int64_t count) {
        write_initial_values(entry, place_, seed, begin, count, out + begin);
      });
    }
    const Tensor host = Tensor::of(staging.data(), {range.size}), values = this->values(block);
    if (values.dtype() == DType::f32) {
      copy(stream, host, values);
    } else {
      std::vector<BFloat16> rounded(staging.size());
      std::transform(staging.begin(), staging.end(), rounded.begin(), [](float value) { return BFloat16(value); });
      copy(stream, Tensor::of(rounded.data(), {range.size}), values);
      copy(stream, host.flat(owned.begin - range.begin, owned.size), masters(block));
      stream.synchronize();  // rounded goes
    }
    stream.synchronize();  // staging goes
  }
}

void ParameterStore::round_masters(Stream& stream) const {
  if (!has_masters()) return;
  for (int block = 0; block + 1 < partition_.blocks(); ++block) {
    const FlatRange owned = partition_.owned(block);
    convert(stream, masters(block), values(block).flat(owned.begin - partition_.block(block).begin, owned.size));
  }
}

}  // namespace dm
