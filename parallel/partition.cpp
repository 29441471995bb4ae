// Padding arithmetic, and collectives on one block.
#include "parallel/partition.h"

namespace dm {

BlockPartition::BlockPartition(const std::vector<std::int64_t>& block_sizes, int data_rank, int data_size)
    : data_rank_(data_rank), data_size_(data_size) {
  require(data_size >= 1 && data_rank >= 0 && data_rank < data_size, "a data rank outside its group");
  constexpr std::int64_t kAlignedElements = 64;  // 256 bytes of float32
  const std::int64_t unit = kAlignedElements * data_size;
  for (const std::int64_t size : block_sizes) {
    const std::int64_t padded = (size + unit - 1) / unit * unit;
    blocks_.push_back({elements_, padded});
    elements_ += padded;
  }
}

FlatRange BlockPartition::owned(int index) const {
  const std::int64_t share = block(index).size / data_size_;
  return {block(index).begin + data_rank_ * share, share};
}

void reduce_scatter_block(Stream& stream, Communicator& data, const BlockPartition& partition, int block,
                          const Tensor& gradients) {
  const FlatRange whole = partition.block(block), mine = partition.owned(block);
  data.reduce_scatter(stream, gradients.flat(whole.begin, whole.size), gradients.flat(mine.begin, mine.size));
}

void all_gather_block(Stream& stream, Communicator& data, const BlockPartition& partition, int block, const Tensor& values) {
  const FlatRange whole = partition.block(block), mine = partition.owned(block);
  data.all_gather(stream, values.flat(mine.begin - whole.begin, mine.size), values);
}

}  // namespace dm
