// How this program was built, for banners and checkpoints.
#pragma once

#include <string>

namespace dm {

/// "densemamba 0.1.0 (a1b2c3d), Release, GCC 12.2.0, Open MPI v4.1.4, no CUDA"
std::string build_description();

}  // namespace dm
