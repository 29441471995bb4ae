// How a public op finds its backend: by the device of the stream, after its own shape checks.
#pragma once

#include <string_view>
#include <utility>

#include "runtime/error.h"
#include "runtime/stream.h"

namespace dm {

/// The CPU and the CUDA twin of an op. Both are referenced here, so a missing one is a link error.
#ifdef DM_CUDA
#define DM_TWINS(op) &cpu::op, &cuda::op
#else
#define DM_TWINS(op) &cpu::op, static_cast<decltype(&cpu::op)>(nullptr)
#endif

/// Calls the twin for the stream's device inside a trace range; nothing on a planning stream.
template <class Op, class... Args>
void dispatch(Stream& stream, std::string_view name, Op cpu, Op cuda, Args&&... args) {
  if (stream.planning()) return;
  const Trace::Range range(stream.trace(), name, Trace::Kind::compute);
  if (stream.device().kind == DeviceKind::cpu) return cpu(stream, std::forward<Args>(args)...);
  require(cuda != nullptr, "this build has no CUDA backend; use --run.device cpu");
  cuda(stream, std::forward<Args>(args)...);
}

}  // namespace dm
