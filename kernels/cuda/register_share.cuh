// How the warpgroups of a block share its registers.
#pragma once

namespace dm::cuda {

/// By all warps of a warpgroup, at the start of a branch that is its own: its threads keep kCount registers and give back
/// the others. A kernel begins with as many a thread as its launch bounds allow.
template <int kCount>
__device__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
/// Likewise: its threads wait until there are kCount for each.
template <int kCount>
__device__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace dm::cuda
