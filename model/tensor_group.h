// Sums over the ranks that share a copy of the model, in the order of the work or beside it.
#pragma once

#include <optional>

#include "parallel/communicator.h"
#include "runtime/stream.h"

namespace dm {

/// A tensor-parallel layer waits for sums of its ranks' partial results. Where other work lies between a partial result and
/// the first use of its sum, the sum runs on a stream of its own meanwhile. Every rank of the group makes the same calls. On
/// the CPU a sum is done when it is started, and a group of one does nothing.
class TensorGroup {
 public:
  /// `ranks` outlives the group.
  explicit TensorGroup(Communicator& ranks) : ranks_(ranks) {}
  TensorGroup(const TensorGroup&) = delete;
  TensorGroup& operator=(const TensorGroup&) = delete;

  Communicator& ranks() const { return ranks_; }

  /// tensor = sum over the ranks of what is in it after all work given to `stream` so far. Until `finish_sum`, work given to
  /// `stream` leaves it alone. One sum at a time.
  void start_sum(Stream& stream, const Tensor& tensor) {
    if (!stream.native() || ranks_.size() == 1) {
      ranks_.all_reduce(stream, tensor);
      return;
    }
    if (!beside_) beside_.emplace(stream.device());
    point_.record(stream);
    point_.hold(*beside_);
    ranks_.all_reduce(*beside_, tensor);
    done_.record(*beside_);
  }
  /// Work given to `stream` from now on sees the sum.
  void finish_sum(Stream& stream) const { done_.hold(stream); }

 private:
  Communicator& ranks_;
  std::optional<Stream> beside_;  // of a GPU; made at the first sum
  Event point_, done_;
};

}  // namespace dm
