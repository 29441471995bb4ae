// All parameters of one rank in one flat value buffer and one flat gradient buffer, contiguous by block.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "model/parameters.h"
#include "runtime/buffer.h"
#include "runtime/tensor.h"

namespace dm {

/// A parameter as a layer sees it: this rank's part of its value and of its gradient (float32, accumulated).
struct Parameter {
  Tensor value;
  Tensor gradient;
};

/// Elements [begin, begin + size) of the flat buffers.
struct FlatRange {
  std::int64_t begin = 0;
  std::int64_t size = 0;
  std::int64_t end() const { return begin + size; }
};

/// Where this rank stands in the grid, as the store needs it.
struct StorePlace {
  int tensor_rank = 0;
  int tensor_size = 1;
  int data_rank = 0;
  int data_size = 1;
};

/// Blocks follow one another in the flat buffers; each is padded so that it divides evenly over the data group at a 256-byte
/// alignment. Of every block this rank owns one slice (ZeRO-1): it keeps the optimizer state of those elements and updates
/// them. On the plan device the layout is complete and tensors have no memory.
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

  int blocks() const { return static_cast<int>(blocks_.size()); }
  /// A block with its padding.
  FlatRange block(int index) const { return blocks_[static_cast<std::size_t>(index)]; }
  /// The slice of a block that this rank owns: block size / data_size elements.
  FlatRange owned(int index) const;
  /// Elements owned over all blocks.
  std::int64_t owned_elements() const;

  /// The flat float32 buffers.
  Tensor values() const { return values_.tensor({elements_}, DType::f32); }
  Tensor gradients() const { return gradients_.tensor({elements_}, DType::f32); }

  /// Sets every value from (seed, name, global index): the same model on every grid. Host memory only.
  void initialize(std::uint64_t seed);

 private:
  std::vector<Entry> entries_;
  std::vector<FlatRange> blocks_;
  StorePlace place_;
  std::int64_t elements_ = 0;
  Buffer values_;
  Buffer gradients_;
};

}  // namespace dm
