// How the flat parameter buffer is cut into blocks and, over the data group, into owned slices (ZeRO-1); and the two
// collectives on it.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/communicator.h"
#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

/// Elements [begin, begin + size) of a flat buffer.
struct FlatRange {
  std::int64_t begin = 0;
  std::int64_t size = 0;

  std::int64_t end() const { return begin + size; }
};

/// Blocks are contiguous and follow one another; each is padded so that it divides evenly over the data group into 256-byte
/// aligned slices. Data rank r owns the r-th slice of every block: it keeps the optimizer state of those elements and
/// updates them (Rajbhandari et al., "ZeRO", 2020, stage 1; cut by block so that communication overlaps with backward).
class BlockPartition {
 public:
  /// `block_sizes` in elements, without padding.
  BlockPartition(const std::vector<std::int64_t>& block_sizes, int data_rank, int data_size);

  int blocks() const { return static_cast<int>(blocks_.size()); }
  /// A block with its padding.
  FlatRange block(int index) const { return blocks_[static_cast<std::size_t>(index)]; }
  /// This rank's slice of a block.
  FlatRange owned(int index) const;
  /// Where that slice starts in a buffer that holds only this rank's slices, one after the other.
  std::int64_t owned_offset(int index) const { return block(index).begin / data_size_; }

  /// Elements over all blocks, and over this rank's slices.
  std::int64_t elements() const { return elements_; }
  std::int64_t owned_elements() const { return elements_ / data_size_; }

 private:
  std::vector<FlatRange> blocks_;
  std::int64_t elements_ = 0;
  int data_rank_;
  int data_size_;
};

/// Leaves in this rank's slice of `block` the sum over the data group of `gradients` (flat, all blocks); the rest of the
/// block is undefined afterwards.
void reduce_scatter_block(Stream& stream, Communicator& data, const BlockPartition& partition, int block,
                          const Tensor& gradients);
/// Gives every rank of the data group all slices of `values` (those of `block`, padding included).
void all_gather_block(Stream& stream, Communicator& data, const BlockPartition& partition, int block, const Tensor& values);

}  // namespace dm
