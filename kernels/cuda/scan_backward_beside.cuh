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

/// When rows and columns are aligned and there is one slice of states. kReaders: places of readers, of which any that none
/// has are zero.
template <class T, int kReaders>
class Beside {
 public:
  using Shared = MainShared<T>;

  __device__ Beside(const Fetch<T>& fetch, int tile, int begin, int end)
      : fetch_(fetch), tile_(tile), begin_(begin), end_(end) {}
  /// After the steps of a pair of tokens.
  __device__ void run(int pair) {
    if (pair == 0) load();
    if (pair == 1) copy();
    if (pair == 2) store();
  }

 private:
  __device__ void load() {
    const Shared& s = fetch_.s;
    const int thread = threadIdx.x;
#pragma unroll
    for (int k = 0; k < Shared::kStateCopies; ++k) state_[k] = Cursor::load(s.state_cursor[k][thread]);
#pragma unroll
    for (int k = 0; k < Shared::kRowCopies; ++k) row_[k] = Cursor::load(s.row_cursor[k][thread]);
    column_ = Cursor::load(s.column_cursor[thread]);
    part_.load(fetch_.p, s, 1, tile_ + 1, end_);
    if constexpr (kReaders > 0) {
      static_assert(kReaders == 2 && RowCopy<T>::kCopies == 64);
      gated_ = Cursor::load(s.gated_cursor[thread % 64]);
#pragma unroll
      for (int k = 0; k < kReaders; ++k) reader_row_[k] = Cursor::load(fetch_.s.reader(k).row_cursor[thread % 64]);
      reader_column_ = Cursor::load(fetch_.s.reader(thread / 32 % 2).column_cursor[thread]);
      Columns::load_raw(fetch_.s.reader(thread / 64).raw[(tile_ - 1) & 1], thread % 64, reader_raw_);
    }
  }
  /// Inputs of the tile before, B and C of the one before that.
  __device__ void copy() const {
    const Extents& x = fetch_.p.x;
    constexpr int kBytes = kTile * static_cast<int>(sizeof(T));
    const int buffer = (tile_ - 1) & 1, size = sizeof(typename Shared::Rows);
#pragma unroll
    for (int k = 0; k < Shared::kStateCopies; ++k) {
      state_[k].copy(tile_ - 1, begin_, x.channels * kStates * static_cast<int>(sizeof(T)), buffer, size);
    }
#pragma unroll
    for (int k = 0; k < Shared::kRowCopies; ++k) {
      constexpr int kFirstTwo = 2 * RowCopy<T>::kCopies;
      const int tensor = k * kThreads < kFirstTwo ? 0 : (k * kThreads + threadIdx.x) / RowCopy<T>::kCopies;
      row_[k].copy(tile_ - 1, begin_, fetch_.stride_of(tensor) * kBytes, buffer, size);
    }
    column_.copy(tile_ - 2, begin_, x.columns * kTile * static_cast<int>(sizeof(float)), (tile_ - 2) & 3,
                 sizeof(typename Shared::Raw), threadIdx.x < 64);
    if constexpr (kReaders > 0) {
      const int thread = threadIdx.x, stride = x.channels * kBytes;
      gated_.copy(tile_ - 1, begin_, stride, buffer, size, thread < 64 && fetch_.p.gated_readout);
#pragma unroll
      for (int k = 0; k < kReaders; ++k) {
        reader_row_[k].copy(tile_ - 1, begin_, stride, buffer, sizeof(RawRows<T>), thread < 64 && k < fetch_.readers);
      }
      reader_column_.copy(tile_ - 2, begin_, x.columns * kTile * static_cast<int>(sizeof(float)), tile_ & 1,
                          sizeof(fetch_.s.reader(0).raw[0]), thread >= 64 && thread / 32 - 2 < fetch_.readers);
    }
  }
  __device__ void store() {
    part_.store();
    if constexpr (kReaders > 0) {
      fetch_.s.reader(threadIdx.x / 64).C[(tile_ - 1) & 1].store_cut(reader_raw_, threadIdx.x % 64);
    }
  }

  const Fetch<T>& fetch_;
  int tile_, begin_, end_;
  Cursor state_[Shared::kStateCopies], row_[Shared::kRowCopies], column_;
  ColumnPart<T> part_;
  Cursor gated_, reader_row_[kReaders > 0 ? kReaders : 1], reader_column_;
  float reader_raw_[4];
};

}  // namespace dm::cuda::scan::backward
