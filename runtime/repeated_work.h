// Work that is given to a GPU again and again in the same form, recorded once as a CUDA graph.
#pragma once

#include "runtime/stream.h"

namespace dm {

/// Spares the host the launch of every kernel, which at small sizes takes longer than the kernel. The work must give the
/// streams the same operations on the same memory each time: values may change only in memory. Streams other than `stream`
/// may take part from a wait for `stream` on, and `stream` must wait for their end. On the CPU the work is just done.
class RepeatedWork {
 public:
  /// Does `work()`. The first time as it stands (algorithms are chosen, libraries allocate); the second time it is recorded;
  /// from then on `work` is not called any more.
  template <class Work>
  void run(Stream& stream, const Work& work) {
    if (!stream.native() || !seen_) {
      seen_ = true;
      work();
      return;
    }
    if (!graph_) {
      cuda::begin_capture(*stream.native());
      work();
      graph_ = cuda::end_capture(*stream.native());
    }
    cuda::launch(*stream.native(), *graph_);
  }

 private:
  bool seen_ = false;
  cuda::NativeGraphPointer graph_;
};

}  // namespace dm
