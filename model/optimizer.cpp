// Which parts of which parameters this rank owns, and the loops over them.
#include "model/optimizer.h"

#include <algorithm>

#include "kernels/adamw.h"
#include "kernels/elementwise.h"
#include "runtime/copy.h"

namespace dm {
namespace {

constexpr std::int64_t kControlOffset = 64;  // bytes: the count of updates stands alone in front

}  // namespace

PartitionedAdamW::PartitionedAdamW(const ParameterStore& store, Grid& grid, Settings settings, MemoryReport& report)
    : store_(store), grid_(grid), settings_(settings), report_(report) {
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
  for (const Segment& segment : segments_) {
    const Run run{segment.entry->spec.block, segment.entry->spec.decay, segment.first_copy, segment.flat,
                  segment.state_begin};
    const bool continues = !runs_.empty() && runs_.back().block == run.block && runs_.back().decay == run.decay &&
                           runs_.back().first_copy == run.first_copy;
    if (continues) {
      runs_.back().flat.size = run.flat.end() - runs_.back().flat.begin;
    } else {
      runs_.push_back(run);
    }
  }
  const std::int64_t bytes = partition.owned_elements() * size_of(DType::f32);
  first_moments_ = Buffer("optimizer moments", bytes, store.device(), report);
  second_moments_ = Buffer("optimizer moments", bytes, store.device(), report);
  control_ = Buffer("optimizer moments", 2 * kControlOffset, store.device(), report);
}

Tensor PartitionedAdamW::control() const {
  return control_.tensor({2 * kControlOffset / size_of(DType::f32)}, DType::f32)
      .flat(kControlOffset / size_of(DType::f32), 3);
}

void PartitionedAdamW::reduce_block(Stream& stream, int block) {
  reduce_scatter_block(stream, *grid_.data, store_.partition(), block, store_.gradients());
}

void PartitionedAdamW::reduce_all(Stream& stream) {
  grid_.data->together([&] {
    for (int block = 0; block < store_.partition().blocks(); ++block) reduce_block(stream, block);
  });
}

void PartitionedAdamW::gather_all(Stream& stream) {
  grid_.data->together([&] {
    for (int block = 0; block < store_.partition().blocks(); ++block) gather_block(stream, block);
  });
}

void PartitionedAdamW::gather_block(Stream& stream, int block) {
  all_gather_block(stream, *grid_.data, store_.partition(), block, store_.values(block));
}

void PartitionedAdamW::add_gradient_norm_squared(Stream& stream, const Tensor& norm_squared) {
  for (const Run& run : runs_) {
    if (run.first_copy) sum_of_squares(stream, store_.gradients().flat(run.flat.begin, run.flat.size), norm_squared);
  }
  grid_.tensor->all_reduce(stream, norm_squared);
  grid_.data->all_reduce(stream, norm_squared);
}

void PartitionedAdamW::update(Stream& stream, float lr, const Tensor& loss_sum, const Tensor& norm_squared,
                              const BlockUpdated& updated) {
  step_control(stream, loss_sum, norm_squared, settings_.clip, settings_.beta1, settings_.beta2, updates(), control());
  const Tensor gradients = store_.gradients(), first = this->first(), second = this->second();
  AdamWSettings settings{
      .lr = lr, .beta1 = settings_.beta1, .beta2 = settings_.beta2, .epsilon = settings_.epsilon, .weight_decay = 0};
  const auto update_block = [&](int block) {
    const FlatRange whole = store_.partition().block(block), owned = store_.partition().owned(block);
    const Tensor values = store_.values(block), masters = store_.masters(block);
    for (const Run& run : runs_) {
      if (run.block != block) continue;
      settings.weight_decay = run.decay ? settings_.weight_decay : 0.0f;
      const std::int64_t begin = run.flat.begin, size = run.flat.size;
      adamw(stream, settings, control(), gradients.flat(begin, size), first.flat(run.state_begin, size),
            second.flat(run.state_begin, size), masters.flat(begin - owned.begin, size),
            values.flat(begin - whole.begin, size));
    }
    if (updated) updated(block);
  };
  const int small = store_.partition().blocks() - 1;  // every layer reads it
  update_block(small);
  for (int block = 0; block < small; ++block) update_block(block);
}

PartitionedAdamW::State PartitionedAdamW::host_state() {
  if (store_.device().kind == DeviceKind::cpu) {
    return {[this](int block) { return store_.masters(block); }, first(), second()};
  }
  const std::int64_t n = store_.partition().owned_elements();
  if (!mirror_) mirror_ = Buffer::pinned("host copy of the state", 3 * n * size_of(DType::f32), report_);
  const Tensor all = mirror_->tensor({3 * n}, DType::f32);
  const auto masters = [this, all](int block) {
    return all.flat(store_.partition().owned_offset(block), store_.partition().owned(block).size);
  };
  return {masters, all.flat(n, n), all.flat(2 * n, n)};
}

void PartitionedAdamW::mirror(Stream& stream, bool to_host) {
  if (store_.device().kind == DeviceKind::cpu) return;
  const State host = host_state();
  const auto move = [&](const Tensor& device, const Tensor& mirrored) {
    copy(stream, to_host ? device : mirrored, to_host ? mirrored : device);
  };
  for (int block = 0; block < store_.partition().blocks(); ++block) move(store_.masters(block), host.masters(block));
  move(first(), host.first);
  move(second(), host.second);
  stream.synchronize();
}

std::vector<StatePiece> PartitionedAdamW::pieces_to_save(Stream& stream) {
  mirror(stream, /*to_host=*/true);
  return pieces(/*first_copies_only=*/true);
}

std::vector<StatePiece> PartitionedAdamW::pieces_to_load() {
  return pieces(/*first_copies_only=*/false);
}

void PartitionedAdamW::finish_load(Stream& stream) {
  mirror(stream, /*to_host=*/false);
  store_.round_masters(stream);
  gather_all(stream);
  stream.synchronize();
}

std::vector<StatePiece> PartitionedAdamW::pieces(bool first_copies_only) {
  const StorePlace& place = store_.place();
  const State state = host_state();
  std::vector<StatePiece> pieces;
  for (const Segment& segment : segments_) {
    if (first_copies_only && !segment.first_copy) continue;
    const ParameterSpec& spec = segment.entry->spec;
    const Tensor masters = state.masters(spec.block);
    const std::int64_t in_slice = segment.flat.begin - store_.partition().owned(spec.block).begin;
    std::int64_t done = 0;
    for (const Rectangle& where : global_rectangles(spec.shape, spec.shard, place.tensor_rank, place.tensor_size,
                                                    segment.flat.begin - segment.entry->range.begin, segment.flat.size)) {
      const auto add = [&](StateKind kind, const Tensor& flat, std::int64_t begin) {
        pieces.push_back({spec.name, kind, spec.shape, where, flat.flat(begin + done, where.numel())});
      };
      add(StateKind::value, masters, in_slice);
      add(StateKind::first_moment, state.first, segment.state_begin);
      add(StateKind::second_moment, state.second, segment.state_begin);
      done += where.numel();
    }
  }
  return pieces;
}

}  // namespace dm
