// Version, compiler and MPI library in one line.
#include "launch/build_info.h"

#include <mpi.h>

#include <string_view>

#include <fmt/format.h>

#include "runtime/cuda/cuda.h"

namespace dm {

std::string build_description() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string_view mpi(text, static_cast<std::size_t>(length));
#ifdef __clang__
  constexpr const char* kCompiler = "Clang " __clang_version__;
#else
  constexpr const char* kCompiler = "GCC " __VERSION__;
#endif
  return fmt::format("densemamba {} ({}), {}, {}, {}, {}", DM_VERSION, DM_COMMIT, DM_BUILD_TYPE, kCompiler,
                     mpi.substr(0, mpi.find(',')), cuda::is_built() ? "CUDA" : "no CUDA");
}

}  // namespace dm
