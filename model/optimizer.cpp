// Which parts of which parameters this rank owns, and the loop over them.
#include "model/optimizer.h"

#include <algorithm>

#include "kernels/adamw.h"
#include "kernels/elementwise.h"

namespace dm {

PartitionedAdamW::PartitionedAdamW(const ParameterStore& store, Grid& grid, Settings settings, Device device,
                                   MemoryReport& report)
    : store_(store), grid_(grid), settings_(settings) {
  const BlockPartition& partition = store.partition();
  for (const ParameterStore::Entry& entry : store.entries()) {
    const FlatRange owned = partition.owned(entry.spec.block);
    const std::int64_t begin = std::max(owned.begin, entry.range.begin), end = std::min(owned.end(), entry.range.end());
    if (begin >= end) continue;
    segments_.push_back({.entry = &entry,
                         .flat = {begin, end - begin},
                         .state_begin = partition.owned_offset(entry.spec.block) + begin - owned.begin,
                         .first_copy = entry.spec.shard.axis != Shard::Axis::none || store.place().tensor_rank == 0});
  }
  const std::int64_t bytes = partition.owned_elements() * size_of(DType::f32);
  first_moments_ = Buffer("optimizer moments", bytes, device, report);
  second_moments_ = Buffer("optimizer moments", bytes, device, report);
}

void PartitionedAdamW::reduce_block(Stream& stream, int block) {
  reduce_scatter_block(stream, *grid_.data, store_.partition(), block, store_.gradients());
}

void PartitionedAdamW::add_gradient_norm_squared(Stream& stream, const Tensor& norm_squared) {
  const Tensor gradients = store_.gradients();
  for (const Segment& segment : segments_) {
    if (segment.first_copy) sum_of_squares(stream, gradients.flat(segment.flat.begin, segment.flat.size), norm_squared);
  }
  grid_.tensor->all_reduce(stream, norm_squared);
  grid_.data->all_reduce(stream, norm_squared);
}

void PartitionedAdamW::update(Stream& stream, float lr, std::int64_t step, float gradient_scale) {
  const Tensor values = store_.values(), gradients = store_.gradients();
  const Tensor first = first_moments_.tensor({store_.partition().owned_elements()}, DType::f32);
  const Tensor second = second_moments_.tensor(first.shape(), DType::f32);
  AdamWStep settings{.lr = lr,
                     .beta1 = settings_.beta1,
                     .beta2 = settings_.beta2,
                     .epsilon = settings_.epsilon,
                     .step = step,
                     .gradient_scale = gradient_scale};
  for (const Segment& segment : segments_) {
    const Tensor value = values.flat(segment.flat.begin, segment.flat.size);
    settings.weight_decay = segment.entry->spec.decay ? settings_.weight_decay : 0.0f;
    adamw(stream, settings, gradients.flat(segment.flat.begin, segment.flat.size),
          first.flat(segment.state_begin, segment.flat.size), second.flat(segment.state_begin, segment.flat.size), value,
          value);
  }
  gather_values(stream);
}

void PartitionedAdamW::gather_values(Stream& stream) {
  for (int block = 0; block < store_.partition().blocks(); ++block) {
    all_gather_block(stream, *grid_.data, store_.partition(), block, store_.values());
  }
}

std::vector<StatePiece> PartitionedAdamW::pieces_to_save() const {
  return pieces(/*first_copies_only=*/true);
}

std::vector<StatePiece> PartitionedAdamW::pieces_to_load() const {
  return pieces(/*first_copies_only=*/false);
}

std::vector<StatePiece> PartitionedAdamW::pieces(bool first_copies_only) const {
  const StorePlace& place = store_.place();
  const Tensor values = store_.values();
  const Tensor first = first_moments_.tensor({store_.partition().owned_elements()}, DType::f32);
  const Tensor second = second_moments_.tensor(first.shape(), DType::f32);
  std::vector<StatePiece> pieces;
  for (const Segment& segment : segments_) {
    if (first_copies_only && !segment.first_copy) continue;
    const ParameterSpec& spec = segment.entry->spec;
    std::int64_t done = 0;
    for (const Rectangle& where : global_rectangles(spec.shape, spec.shard, place.tensor_rank, place.tensor_size,
                                                    segment.flat.begin - segment.entry->range.begin, segment.flat.size)) {
      const auto add = [&](StateKind kind, const Tensor& flat, std::int64_t begin) {
        pieces.push_back({spec.name, kind, spec.shape, where, flat.flat(begin + done, where.numel())});
      };
      add(StateKind::value, values, segment.flat.begin);
      add(StateKind::first_moment, first, segment.state_begin);
      add(StateKind::second_moment, second, segment.state_begin);
      done += where.numel();
    }
  }
  return pieces;
}

}  // namespace dm
