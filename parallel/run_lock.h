// One job for one run directory: a second is refused with host and process id of the first.
#pragma once

#include <filesystem>

#include "runtime/log.h"

namespace dm {

/// Holds `<run_directory>/lock` (the directory must exist) from construction to destruction; rank 0 has it. The file names
/// the holder's host, process id and the time at which that process began, and is flock-ed where the file system can.
///
/// Throws Error naming host and pid when another process holds it. A lock whose process on this host is gone (or whose
/// process id now belongs to another process) is taken over with a warning. A lock of another host cannot be judged from
/// here: it is refused, and the message says which file to remove when that job is gone.
class RunLock {
 public:
  RunLock(const std::filesystem::path& run_directory, const Log& log);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  std::filesystem::path path_;
  int descriptor_;
};

}  // namespace dm
