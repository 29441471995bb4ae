// Sums and gathers over the ranks that share a copy of the model, beside the work that does not wait for them.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

#include "kernels/elementwise.h"
#include "model/parts.h"
#include "parallel/communicator.h"
#include "runtime/stream.h"

namespace dm {

/// A tensor-parallel layer waits for sums of its ranks' partial results. Between the start of a transfer and its finish the
/// stream's work leaves the tensor alone, and the transfer runs on a stream of its own, one after the other. Every rank of
/// the group makes the same calls. On the CPU a transfer is done when it is started, and a group of one transfers nothing.
///
/// A sum may have an inbox, memory for the other ranks' terms alone. Where GPUs send directly (Communicator::sends) terms
/// arrive there before anybody asks for them, and whoever waits for the sum adds them. What Communicator demands of such
/// transfers holds because each of a layer's needs the one before: x_proj's sum the gathered rows, the sum of rows x_proj's,
/// the next gather the sum of rows; halves that take turns put one of the other half's between. And because a pass begins
/// with a sum without an inbox, the embedding's.
class TensorGroup {
 public:
  /// `ranks` outlives the group.
  explicit TensorGroup(Communicator& ranks) : ranks_(ranks) {}
  TensorGroup(const TensorGroup&) = delete;
  TensorGroup& operator=(const TensorGroup&) = delete;

  Communicator& ranks() const { return ranks_; }

  /// tensor = sum over the ranks of what is in it after all work given to `stream` so far. One such sum at a time. `inbox`
  /// is of the tensor's size, or absent.
  void start_sum(Stream& stream, const Tensor& tensor, const Tensor& inbox) {
    const auto sums = std::span(&sum_, 1);
    start(stream, sums, [&](Stream& beside) {
      if (ranks_.size() == 2 && inbox && ranks_.sends(tensor)) {
        ranks_.send_whole(beside, tensor, inbox);
        sum_.terms = inbox, sum_.to = tensor;
      } else {
        ranks_.all_reduce(beside, tensor);
      }
    });
  }
  /// Work given to `stream` from now on sees the sum.
  void finish_sum(Stream& stream) {
    sum_.done.hold(stream);
    if (sum_.terms) add_to(stream, sum_.terms, sum_.to);
  }

  /// This rank's own rows of parts [first, first + count) of x = sum over the ranks, but for the terms that `finish`
  /// returns; the rest of the parts is undefined. One transfer of a part at a time: `finish` it before the next. Inboxes are
  /// those of `parts`, or none unless `receives`.
  void start_sum(Stream& stream, const Parts& parts, const Tensor& x, int first, int count, bool receives = true) {
    const auto transfers = std::span(parts_).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    start(stream, transfers, [&](Stream& beside) {
      std::vector<Tensor> wholes, inboxes;
      for (int i = first; i < first + count; ++i) wholes.push_back(parts.of(x, i)), inboxes.push_back(parts.inbox(i));
      if (receives && parts.cut() && inboxes.front() && ranks_.sends(wholes.front())) {
        ranks_.send_parts(beside, wholes, inboxes);
        for (std::size_t i = 0; i < transfers.size(); ++i) transfers[i].terms = inboxes[i];
        return;
      }
      for (int i = first; i < first + count; ++i) {
        if (parts.cut()) {
          ranks_.reduce_scatter(beside, parts.of(x, i).flat(), parts.own(x, i).flat());
        } else {
          ranks_.all_reduce(beside, parts.of(x, i));
        }
      }
    });
  }
  /// Parts [first, first + count) of x = the own rows of all ranks.
  void start_gather(Stream& stream, const Parts& parts, const Tensor& x, int first, int count) {
    if (!parts.cut()) return;
    const auto transfers = std::span(parts_).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count));
    start(stream, transfers, [&](Stream& beside) {
      std::vector<Tensor> wholes;
      for (int i = first; i < first + count; ++i) wholes.push_back(parts.of(x, i));
      if (ranks_.sends(wholes.front())) return ranks_.send_own(beside, wholes);
      for (int i = first; i < first + count; ++i) {
        ranks_.all_gather(beside, parts.own(x, i).flat(), parts.of(x, i).flat());
      }
    });
  }
  /// Work given to `stream` from now on sees what was last started for part `i`. Returns what the own rows of a sum still
  /// lack, [K, rows, C] or absent.
  Tensor finish(Stream& stream, int i) const {
    const Transfer& transfer = parts_[static_cast<std::size_t>(i)];
    transfer.done.hold(stream);
    return transfer.terms;
  }

 private:
  struct Transfer {
    Event begin, done;
    Tensor terms, to;  // what arrives in an inbox, or absent; and what it is to be added to
  };

  template <class Work>
  void start(Stream& stream, std::span<Transfer> transfers, const Work& work) {
    if (ranks_.size() == 1) return;
    for (Transfer& transfer : transfers) transfer.terms = Tensor();
    if (!stream.native()) return work(stream);
    if (!beside_) beside_.emplace(stream.device(), nullptr, Stream::Priority::high);
    Event& begin = transfers.front().begin;
    begin.record(stream);
    begin.hold(*beside_);
    work(*beside_);
    for (Transfer& transfer : transfers) transfer.done.record(*beside_);
  }

  Communicator& ranks_;
  std::optional<Stream> beside_;  // of a GPU; made at the first transfer
  Transfer sum_;
  std::array<Transfer, Parts::kMost> parts_;
};

}  // namespace dm
