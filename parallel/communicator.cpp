// What every transport shares: the arguments are checked, the call is counted, timed and shown to the watchdog.
#include "parallel/communicator.h"

#include <fmt/format.h>

namespace dm {
namespace {

[[noreturn]] void refuse(std::string_view op, const std::string& group, const std::string& why) {
  fail(fmt::format("{} of group {}: {}", op, group, why));
}

void check_present(std::string_view op, const std::string& group, const Stream& stream, const Tensor& tensor) {
  if (!tensor) refuse(op, group, "the tensor is absent");
  if (tensor.device() != stream.device()) {
    refuse(op, group,
           fmt::format("the tensor is on {}, the stream on {}", name_of(tensor.device()), name_of(stream.device())));
  }
}

void check_reducible(std::string_view op, const std::string& group, const Tensor& tensor) {
  if (tensor.dtype() == DType::u8) refuse(op, group, "uint8 cannot be reduced; use int32");
}

/// `full` holds one `shard` for each rank, and `shard` is its own part of `full` or lies elsewhere.
void check_parts(std::string_view op, const Communicator& group, const Stream& stream, const Tensor& full,
                 const Tensor& shard) {
  check_present(op, group.name(), stream, full);
  check_present(op, group.name(), stream, shard);
  if (full.dtype() != shard.dtype()) {
    refuse(op, group.name(), fmt::format("full is {}, shard is {}", name_of(full.dtype()), name_of(shard.dtype())));
  }
  if (full.numel() != shard.numel() * group.size()) {
    refuse(op, group.name(),
           fmt::format("full has {} elements, which is not {} ranks times a shard of {}", full.numel(), group.size(),
                       shard.numel()));
  }
  if (stream.planning() || shard.numel() == 0) return;
  const auto* begin = static_cast<const std::byte*>(full.data());
  const auto* part = static_cast<const std::byte*>(shard.data());
  const bool is_own_part = part == begin + group.rank() * shard.bytes();
  const bool is_elsewhere = part + shard.bytes() <= begin || part >= begin + full.bytes();
  if (!is_own_part && !is_elsewhere) refuse(op, group.name(), "shard overlaps full but is not this rank's part of it");
}

}  // namespace

template <class Work>
void Communicator::run(Stream& stream, std::string_view op, std::int64_t bytes, const Work& work) {
  if (stream.planning()) return;
  struct Visit {
    CollectiveObserver* observer;
    ~Visit() {
      if (observer) observer->left();
    }
  };
  const Trace::Range range(stream.trace(), op, Trace::Kind::communication);
  ++counters_.calls;
  last_op_ = op;
  counters_.bytes += bytes;
  if (observer_) observer_->entered(op, name_, bytes);
  const Visit visit{observer_};
  work();
}

void Communicator::all_reduce(Stream& stream, const Tensor& tensor, ReduceOp op) {
  check_present("all_reduce", name_, stream, tensor);
  check_reducible("all_reduce", name_, tensor);
  run(stream, "all_reduce", tensor.bytes(), [&] { do_all_reduce(stream, tensor, op); });
}

void Communicator::reduce_scatter(Stream& stream, const Tensor& full, const Tensor& shard) {
  check_parts("reduce_scatter", *this, stream, full, shard);
  check_reducible("reduce_scatter", name_, full);
  run(stream, "reduce_scatter", full.bytes(), [&] { do_reduce_scatter(stream, full, shard); });
}

void Communicator::all_gather(Stream& stream, const Tensor& shard, const Tensor& full) {
  check_parts("all_gather", *this, stream, full, shard);
  run(stream, "all_gather", shard.bytes(), [&] { do_all_gather(stream, shard, full); });
}

void Communicator::broadcast(Stream& stream, const Tensor& tensor, int root) {
  check_present("broadcast", name_, stream, tensor);
  if (root < 0 || root >= size_) refuse("broadcast", name_, fmt::format("root {} of {} ranks", root, size_));
  run(stream, "broadcast", tensor.bytes(), [&] { do_broadcast(stream, tensor, root); });
}

void Communicator::barrier(Stream& stream) {
  run(stream, "barrier", 0, [&] { do_barrier(stream); });
}

void Communicator::send_parts(Stream& stream, std::span<const Tensor> fulls, std::span<const Tensor> inboxes) {
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < fulls.size(); ++i) {
    const std::int64_t part = fulls[i].numel() / size();
    check_present("send_parts", name_, stream, fulls[i]);
    if (fulls.size() != inboxes.size() || fulls[i].numel() != part * size() || inboxes[i].dtype() != fulls[i].dtype() ||
        inboxes[i].numel() != part * (size() - 1)) {
      refuse("send_parts", name_, "an inbox does not fit its tensor");
    }
    bytes += fulls[i].bytes();
  }
  if (last_op_ == "send_parts") refuse("send_parts", name_, "twice in a row");
  run(stream, "send_parts", bytes, [&] { do_send_parts(stream, fulls, inboxes); });
}

void Communicator::send_whole(Stream& stream, const Tensor& tensor, const Tensor& inbox) {
  check_present("send_whole", name_, stream, tensor);
  if (size() != 2 || inbox.dtype() != tensor.dtype() || inbox.numel() != tensor.numel()) {
    refuse("send_whole", name_, "it is for two ranks and an inbox like the tensor");
  }
  if (last_op_ == "send_whole") refuse("send_whole", name_, "twice in a row");
  run(stream, "send_whole", tensor.bytes(), [&] { do_send_whole(stream, tensor, inbox); });
}

void Communicator::send_own(Stream& stream, std::span<const Tensor> fulls) {
  std::int64_t bytes = 0;
  for (const Tensor& full : fulls) {
    check_present("send_own", name_, stream, full);
    if (full.numel() % size() != 0) refuse("send_own", name_, "the ranks do not divide a tensor");
    bytes += full.bytes() / size();
  }
  if (last_op_ == "send_own") refuse("send_own", name_, "twice in a row");
  run(stream, "send_own", bytes, [&] { do_send_own(stream, fulls); });
}

void Communicator::do_send_parts(Stream&, std::span<const Tensor>, std::span<const Tensor>) {
  refuse("send_parts", name_, "this group does not send");
}
void Communicator::do_send_whole(Stream&, const Tensor&, const Tensor&) {
  refuse("send_whole", name_, "this group does not send");
}
void Communicator::do_send_own(Stream&, std::span<const Tensor>) {
  refuse("send_own", name_, "this group does not send");
}

}  // namespace dm
