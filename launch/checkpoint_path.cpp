// A run directory is recognised by the `checkpoints` folder inside it.
#include "launch/checkpoint_path.h"

#include <fmt/format.h>

#include "parallel/checkpoint.h"
#include "runtime/error.h"

namespace dm {

std::vector<std::filesystem::path> checkpoints_at(const std::filesystem::path& path) {
  if (!std::filesystem::is_directory(path))
    fail(fmt::format("'{}' is neither a checkpoint nor a run directory", path.string()), ExitCode::usage);
  const std::filesystem::path folder = path / "checkpoints";
  if (!std::filesystem::is_directory(folder)) return {path};
  const std::vector<std::filesystem::path> checkpoints = list_checkpoints(folder);
  if (checkpoints.empty()) fail(fmt::format("'{}' holds no checkpoint", folder.string()), ExitCode::usage);
  return checkpoints;
}

}  // namespace dm
