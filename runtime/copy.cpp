// memcpy, or its ordered twin.
#include "runtime/copy.h"

#include <cstring>

namespace dm {

void copy(Stream& stream, const Tensor& from, const Tensor& to) {
  if (from.dtype() != to.dtype() || from.numel() != to.numel()) {
    fail("cannot copy " + to_string(from.shape()) + " " + std::string(name_of(from.dtype())) + " into " +
         to_string(to.shape()) + " " + std::string(name_of(to.dtype())));
  }
  if (stream.planning() || from.numel() == 0) return;
  if (stream.native()) return cuda::copy(*stream.native(), to.data(), from.data(), from.bytes());
  std::memcpy(to.data(), from.data(), static_cast<std::size_t>(from.bytes()));
}

}  // namespace dm
