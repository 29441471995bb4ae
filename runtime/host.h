// The machine that this process runs on: its name, and what of it the process may use.
#pragma once

#include <string>

namespace dm {

/// As `hostname` prints it; "unknown host" when it cannot be asked.
std::string host_name();

/// Cores that this process may run on: those of its affinity mask; all of the machine's where it cannot be asked.
int usable_cores();
/// Cores of the machine; at least 1.
int machine_cores();

}  // namespace dm
