// The one line on stderr that ends a failed program.
#include <cstdlib>
#include <exception>
#include <new>
#include <string>

#include <fmt/format.h>

#include "launch/commands.h"
#include "parallel/agreement.h"
#include "runtime/host.h"
#include "runtime/log.h"

namespace dm {
namespace {

/// "densemamba", under mpirun "densemamba: rank 1 of 4 on node7". From the environment, because MPI may not be up.
std::string speaker() {
  const char* rank = std::getenv("OMPI_COMM_WORLD_RANK");
  const char* size = std::getenv("OMPI_COMM_WORLD_SIZE");
  if (rank == nullptr || size == nullptr) return "densemamba";
  return fmt::format("densemamba: rank {} of {} on {}", rank, size, host_name());
}

}  // namespace

int report_current_exception() noexcept {
  const Log log(false, speaker());
  try {
    throw;
  } catch (const AgreedError& error) {  // names the rank that failed, which may be another than this one
    Log(false, "densemamba").warn(error.what());
    return static_cast<int>(error.code());
  } catch (const Error& error) {
    log.warn(error.what());
    return static_cast<int>(error.code());
  } catch (const std::bad_alloc&) {
    log.warn("out of memory on the host; `densemamba plan` with the same options prints what the run needs");
  } catch (const std::exception& error) {
    log.warn(fmt::format("unexpected failure: {}", error.what()));
  } catch (...) {
    log.warn("unexpected failure of an unknown type");
  }
  return static_cast<int>(ExitCode::failure);
}

}  // namespace dm
