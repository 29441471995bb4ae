// Moving elements between tensors of any two devices.
#pragma once

#include "runtime/stream.h"
#include "runtime/tensor.h"

namespace dm {

/// to = from, element by element: same dtype and number of elements, no overlap; host and device in any combination. Ordered
/// on the stream (that of the GPU, when one takes part); nothing on a planning stream. A host tensor that takes part must
/// live until the stream has got there; unless it is page-locked (a `pinned` Buffer) the call waits for it.
void copy(Stream& stream, const Tensor& from, const Tensor& to);

}  // namespace dm
