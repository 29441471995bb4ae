// gethostname and sched_getaffinity with their edge cases.
#include "runtime/host.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>

namespace dm {

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown host";
}

int machine_cores() {
  return static_cast<int>(std::max(::sysconf(_SC_NPROCESSORS_ONLN), 1L));
}

int usable_cores() {
  cpu_set_t mask;
  // A machine of more than 1024 cores has a longer mask than this one and refuses it.
  return ::sched_getaffinity(0, sizeof mask, &mask) == 0 ? CPU_COUNT(&mask) : machine_cores();
}

}  // namespace dm
