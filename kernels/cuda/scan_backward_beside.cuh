// What a tile of the selective scan's main backward kernel does for those before and after it in between its own steps.
#pragma once

#include "kernels/cuda/scan_backward_fetch.cuh"

namespace dm::cuda::scan::backward {

/// Where all that is done before the walk.
struct NothingBeside {
  template <class... Args>
  __device__ explicit NothingBeside(const Args&...) {}
  __device__ void run(int) {}
};

/// When rows and columns are aligned and there is one slice of states. kReaders as the kernel's: where it says how many
/// there are, warps may be a tile apart.
template <class T, int kReaders, Fit kFit>
class Beside {
 public:
  using Shared = MainShared<T>;

  __device__ Beside(const Fetch<T>& fetch, int tile, int begin, int end)
      : fetch_(fetch), tile_(tile), begin_(begin), end_(end) {}
  /// After the steps of a pair of tokens.
  __device__ void run(int pair) {
    if (pair == 0) load();
    if (pair == 1) copy();
    if (pair == 2) part_.store();
    if (pair == kPairs - 1 && kReaders >= 0) all_began_ = fetch_.s.begun.ended((end_ - tile_ + 1) & 1);
  }
  /// Whether all warps had begun this tile, which is asked long before somebody must know.
  __device__ bool all_began() const { return all_began_; }

 private:
  static constexpr int kCopies = RowCopy<T>::kWarpCopies;

  __device__ void load() {
    Shared& s = fetch_.s;
    const int thread = threadIdx.x;
#pragma unroll
    for (int k = 0; k < Shared::kStateCopies; ++k) state_[k] = Cursor::load(s.state_cursor[k][thread]);
#pragma unroll
    for (int k = 0; k < Shared::kRowCopies; ++k) row_[k] = Cursor::load(s.row_cursor[k][thread]);
    column_ = Cursor::load(s.column_cursor[thread]);
    part_.load(fetch_.p, s, 1, tile_ + (kReaders < 0 ? 1 : 2), end_);
    if constexpr (kReaders > 0) {
      gated_ = Cursor::load(s.gated_cursor[thread]);
#pragma unroll
      for (int k = 0; k < kReaders; ++k) reader_row_[k] = Cursor::load(s.reader(k).row_cursor[thread]);
    }
  }
  /// Inputs of the tile before, B and C of the one before that.
  __device__ void copy() const {
    const Extents& x = fetch_.p.x;
    constexpr int kBytes = kTile * static_cast<int>(sizeof(T));
    const int buffer = (tile_ - 1) & 1, size = sizeof(typename Shared::Rows), lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < Shared::kStateCopies; ++k) {
      state_[k].template copy<kFit>(tile_ - 1, begin_, x.channels * kStates * static_cast<int>(sizeof(T)), buffer, size);
    }
#pragma unroll
    for (int k = 0; k < Shared::kRowCopies; ++k) {
      const int tensor = k * 32 < 2 * kCopies ? 0 : (k * 32 + lane) / kCopies;
      row_[k].template copy<kFit>(tile_ - 1, begin_, fetch_.stride_of(tensor) * kBytes, buffer, size);
    }
    const int next = reader() < 0 ? sizeof(typename Shared::Raw) : sizeof(typename Shared::Reader::Raw);
    column_.template copy<kFit>(tile_ - 2, begin_, x.columns * kTile * static_cast<int>(sizeof(float)), (tile_ - 2) & 3,
                                next, kReaders > 0 ? reader() < fetch_.readers : threadIdx.x < 64);
    if constexpr (kReaders > 0) {
      gated_.template copy<kFit>(tile_ - 1, begin_, x.channels * kBytes, buffer, size,
                                 lane < kCopies && fetch_.p.gated_readout);
#pragma unroll
      for (int k = 0; k < kReaders; ++k) {
        reader_row_[k].template copy<kFit>(tile_ - 1, begin_, x.channels * kBytes, buffer, sizeof(RawRows<T>),
                                           lane < kCopies && k < fetch_.readers);
      }
    }
    end_group();
  }
  /// Whose C this warp copies: below 0 the tile's own B or C.
  static __device__ int reader() {
    return kReaders > 0 ? static_cast<int>(threadIdx.x) / 32 - 2 : -1;
  }
  static_assert(kReaders <= 2);

  const Fetch<T>& fetch_;
  int tile_, begin_, end_;
  Cursor state_[Shared::kStateCopies], row_[Shared::kRowCopies], column_;
  ColumnPart<T> part_;
  bool all_began_;
  Cursor gated_, reader_row_[kReaders > 0 ? kReaders : 1];
};

}  // namespace dm::cuda::scan::backward
