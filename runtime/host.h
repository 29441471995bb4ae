// The name of the machine that this process runs on.
#pragma once

#include <string>

namespace dm {

/// As `hostname` prints it; "unknown host" when it cannot be asked.
std::string host_name();

}  // namespace dm
