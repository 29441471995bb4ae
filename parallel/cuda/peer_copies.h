// Collectives of the GPUs of one host by their copy engines, which leave the multiprocessors to the work beside them.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "parallel/communicator.h"
#include "runtime/buffer.h"

namespace dm {

/// NCCL moves data with blocks of its own, which wait for multiprocessors that products and scans own, and take them from
/// these. Here copy engines move it over NVLink, and a rank's only kernel is the addition.
///
/// For tensors inside allocations that all ranks lay out alike. Work is ordered on the stream and may be captured in a
/// graph. All collectives of one object are given to one stream at a time. A sum adds ranks in the same order every time,
/// each addition rounded to the tensor's type: the same bits every run and, for a whole sum, on every rank. A lost rank
/// leaves the others' work waiting, as with NCCL, until the job is ended.
class PeerCopies {
 public:
  /// Collective over `host`, the same ranks for host tensors. `memories` and `workspace` (zero until now, kSharingBytes, for
  /// this object alone) are this rank's and outlive the object's work. Null on every rank when one of them cannot reach
  /// another's memory.
  static std::unique_ptr<PeerCopies> open(Communicator& host, const std::vector<const Buffer*>& memories,
                                          const Buffer& workspace);
  ~PeerCopies();
  PeerCopies(const PeerCopies&) = delete;
  PeerCopies& operator=(const PeerCopies&) = delete;

  /// True when `tensor` is one of those described above: f32 or bf16, inside one of `memories`, at a multiple of 16 bytes.
  bool takes(const Tensor& tensor) const;

  /// As of Communicator; shard is the part of full at rank · n. Its number of bytes is a multiple of 16.
  void reduce_scatter(Stream& stream, const Tensor& full, const Tensor& shard);
  void all_gather(Stream& stream, const Tensor& shard, const Tensor& full);

  /// As of Communicator. All tensors are such as `takes` tells, and so are their parts.
  void send_parts(Stream& stream, std::span<const Tensor> fulls, std::span<const Tensor> inboxes);
  void send_whole(Stream& stream, const Tensor& tensor, const Tensor& inbox);
  void send_own(Stream& stream, std::span<const Tensor> fulls);

 private:
  struct Mapped;
  explicit PeerCopies(std::unique_ptr<Mapped> mapped);

  std::unique_ptr<Mapped> mapped_;
};

}  // namespace dm
