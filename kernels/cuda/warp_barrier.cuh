// A barrier in shared memory where some of a block's warps wait for what others did or copied, while the rest go on.
#pragma once

#include <cstdint>

#include "kernels/cuda/common.cuh"

namespace dm::cuda {

/// An mbarrier: a phase ends when so many warps have arrived as `start` was told, and the next begins. Phases are counted
/// from 0; who waits for one names its parity and may be behind by one phase at most. What a warp read or wrote before its
/// arrival happened before whatever follows a wait for that phase. It is none among the lanes of the warp that arrives.
class WarpBarrier {
 public:
  /// By one thread; the block's barrier shows it to the others.
  __device__ void start(int warps) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(at()), "r"(32 * warps)); }

  /// By all lanes of a warp, each for itself: one lane's arrival behind __syncwarp, for all of them, is no faster, and
  /// compute-sanitizer does not see what it orders.
  __device__ void arrive() { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(at()) : "memory"); }

  /// The same, put off until what the lane has started by cp.async is there; returns at once.
  __device__ void arrive_behind_copies() {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(at()) : "memory");
  }

  /// Whether the phase has ended; never waits.
  __device__ bool ended(std::uint32_t parity) const {
    std::uint32_t yes;
    asm volatile("{.reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                 : "=r"(yes)
                 : "r"(at()), "r"(parity)
                 : "memory");
    return yes != 0;
  }
  __device__ void wait(std::uint32_t parity) const {
    std::uint32_t yes;
    do {
      asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                   : "=r"(yes)
                   : "r"(at()), "r"(parity)
                   : "memory");
    } while (yes == 0);
  }

 private:
  __device__ unsigned at() const { return shared_address(&word_); }

  std::uint64_t word_;
};

}  // namespace dm::cuda
