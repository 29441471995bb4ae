// All parameters of one rank in one flat value buffer and one flat gradient buffer, contiguous by block.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "model/parameters.h"
#include "parallel/partition.h"
#include "runtime/buffer.h"
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
/// of each this data rank owns. On the plan device the layout is complete and tensors have no memory.
class ParameterStore {
 public:
  struct Entry {
    ParameterSpec spec;
    Shape local_shape;
    FlatRange range;  ///< Of the flat buffers, without the block's padding.
  };

  ParameterStore(std::vector<ParameterSpec> specs, StorePlace place, Device device, MemoryReport& report);

  /// Throws Error for an unknown name.
  Parameter parameter(std::string_view name) const;
  const std::vector<Entry>& entries() const { return entries_; }
  const StorePlace& place() const { return place_; }

  const BlockPartition& partition() const { return partition_; }

  /// The flat float32 buffers.
  Tensor values() const { return values_.tensor({partition_.elements()}, DType::f32); }
  Tensor gradients() const { return gradients_.tensor({partition_.elements()}, DType::f32); }

  /// Sets every value from (seed, name, global index): the same model on every grid. Host memory only.
  void initialize(std::uint64_t seed);

 private:
  std::vector<Entry> entries_;
  StorePlace place_;
  BlockPartition partition_;
  Buffer values_;
  Buffer gradients_;
};

}  // namespace dm
