// What drives the adjoint of the selective scan's states from outside: rank-one terms of a tile's cotangents and C.
#pragma once

#include "kernels/cuda/scan_backward_shared.cuh"

namespace dm::cuda::scan::backward {

/// λ's new part of two tokens: ȳ ⊗ C and the readers' q ⊗ C, and what enters a tile from behind. kReaders as the kernel's.
/// A product has four terms, one to each lane of a quad: ȳ's and those of three readers, and of four more readers each.
template <class T, int kReaders>
class Drive {
 public:
  __device__ Drive(MainShared<T>& s, const Lane& lane, int tile, int readers)
      : s_(s), lane_(lane), tile_(tile), readers_(readers), term_(term(0)) {}
  __device__ void find(int pair, const States& carry, States (&driven)[2]) const {
    constexpr States kNone = {};
    add(term_, pair, kNone, pair == kPairs - 1 ? carry : kNone, driven);
    if constexpr (kReaders < 0) {
#pragma unroll 1
      for (int k = 1; k <= MainShared<T>::products(readers_); ++k) add(term(k), pair, driven[0], driven[1], driven);
    }
  }

 private:
  struct Term {
    const Plane* first;
    const float (*C)[kStates];
  };
  /// This lane's of product k: nothing times ȳ's C where there is none.
  __device__ Term term(int k) const {
    const Rounded& dy = s_.warp[lane_.warp].dy;
    const float(*C)[kStates] = s_.raw[tile_ & 3].C;
    const int reader = 4 * k + lane_.quad - 1;
    if constexpr (kReaders == 0) return {&dy.of_term(reader < 0), C};
    const bool reads = reader >= 0 && reader < readers_;
    const int bytes = reads ? reader * static_cast<int>(sizeof(typename MainShared<T>::Reader)) : 0;
    const Plane* const own = &dy.of_term(true);
    const int to_q = distance(own, s_.reader(0).q[lane_.warp]) + bytes,
              to_C = distance(C, s_.reader(0).raw[tile_ & 3]) + bytes;
    return {behind(own, reads ? to_q : reader < 0 ? 0 : distance(own, &dy.of_term(false))), behind(C, reads ? to_C : 0)};
  }
  /// Bytes: the compiler sees that what lies so far behind something in shared memory is there too.
  static __device__ int distance(const void* from, const void* to) {
    return static_cast<int>(static_cast<const unsigned char*>(to) - static_cast<const unsigned char*>(from));
  }
  template <class Factor>
  static __device__ const Factor* behind(const Factor* from, int bytes) {
    return reinterpret_cast<const Factor*>(reinterpret_cast<const unsigned char*>(from) + bytes);
  }
  __device__ void add(const Term& term, int pair, const States& to_first, const States& to_second,
                      States (&driven)[2]) const {
    Elements v;
    term.first->load(lane_, pair, v);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float C[2];
      load2(term.C[2 * pair + i] + 2 * lane_.pair, C);
#pragma unroll
      for (int j = 0; j < 2; ++j) product_k4(driven[i][j], (i == 0 ? to_first : to_second)[j], v[i][0], v[i][1], C[j]);
    }
  }

  MainShared<T>& s_;
  const Lane& lane_;
  int tile_, readers_;
  Term term_;
};
/// In float32 the terms are the products of two pieces each.
template <int kReaders>
class Drive<float, kReaders> {
 public:
  __device__ Drive(MainShared<float>& s, const Lane& lane, int tile, int readers)
      : s_(s), lane_(lane), tile_(tile), readers_(readers), C_(s.raw[tile & 3].C, s.cut[tile & 1].C) {}
  __device__ void find(int pair, const States& carry, States (&driven)[2]) {
    constexpr States kNone = {};
    Elements dy;
    s_.warp[lane_.warp].dy.load(lane_, pair, dy);
    C_.template load<false>(lane_, pair);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int t = 2 * pair + i;
        product_k4(driven[i][j], (t == kTile - 1 ? carry : kNone)[j], dy[i][0], dy[i][1], C_.at(j, t));
      }
    }
#pragma unroll(kReaders > 0 ? kReaders : 1)
    for (int k = 0; k < (kReaders >= 0 ? kReaders : readers_); ++k) {
      Elements q;
      float C[2][2];
      s_.reader(k).q[lane_.warp][lane_.quad / 2].load(lane_, pair, q);
      s_.reader(k).C[tile_ & 1].load_pair(lane_, pair, C);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 2; ++j) product_k4(driven[i][j], driven[i][j], q[i][0], q[i][1], C[j][i]);
      }
    }
  }

 private:
  MainShared<float>& s_;
  const Lane& lane_;
  int tile_, readers_;
  Factors<float> C_;
};

}  // namespace dm::cuda::scan::backward
