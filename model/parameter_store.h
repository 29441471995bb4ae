// All parameters of one rank: values in the compute dtype, gradients and owned masters in float32, contiguous by block.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "model/parameters.h"
#include "parallel/partition.h"
#include "runtime/buffer.h"
#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

/// A parameter as a layer sees it: this rank's part of its value and of its gradient (float32, accumulated).
struct Parameter {
  Tensor value;
  Tensor gradient;
};

/// Where this rank stands in the grid, as the store needs it.
struct StorePlace {
  int tensor_rank = 0;
  int tensor_size = 1;
  int data_rank = 0;
  int data_size = 1;
};

/// Parameters of one block lie together, each at a 256-byte alignment; `partition()` says where blocks begin and which slice
/// of each this data rank owns. Every block but the last holds matrices, kept in the compute dtype; the last (`small_block`)
/// is float32. Where the compute dtype is bf16 the owned slices of matrices have a float32 master beside them; in float32
/// the values are their own masters. On a planned device the layout is complete and tensors have no memory.
class ParameterStore {
 public:
  struct Entry {
    ParameterSpec spec;
    Shape local_shape;
    FlatRange range;  ///< Of the flat buffers, without the block's padding.
  };

  /// `compute` is f32 or bf16.
  ParameterStore(std::vector<ParameterSpec> specs, StorePlace place, Device device, MemoryReport& report,
                 DType compute = DType::f32);

  /// Throws Error for an unknown name.
  Parameter parameter(std::string_view name) const;
  const std::vector<Entry>& entries() const { return entries_; }
  const StorePlace& place() const { return place_; }
  DType compute_dtype() const { return compute_; }
  Device device() const { return device_; }

  const BlockPartition& partition() const { return partition_; }
  /// The memory of values and gradients, laid out alike on every data rank.
  std::vector<const Buffer*> shared_over_data() const { return {&matrices_, &small_, &gradients_}; }

  /// The values of a block, padding included, in its dtype.
  Tensor values(int block) const;
  /// The float32 masters of this rank's slice of a block; part of values() where those are float32.
  Tensor masters(int block) const;
  /// The flat float32 gradients of all blocks.
  Tensor gradients() const { return gradients_.tensor({partition_.elements()}, DType::f32); }

  /// Sets every value and master from (seed, name, global index): the same model on every grid. Ordered on the stream; waits
  /// for it.
  void initialize(Stream& stream, std::uint64_t seed);
  /// Rounds the masters into this rank's slices of the values (nothing in float32).
  void round_masters(Stream& stream) const;

 private:
  bool has_masters() const { return compute_ != DType::f32; }
  /// Elements of the blocks that are kept in the compute dtype.
  std::int64_t matrix_elements() const { return partition_.block(partition_.blocks() - 1).begin; }

  std::vector<Entry> entries_;
  StorePlace place_;
  Device device_;
  DType compute_;
  BlockPartition partition_;
  Buffer matrices_;
  Buffer small_;
  Buffer masters_;
  Buffer gradients_;
};

}  // namespace dm
