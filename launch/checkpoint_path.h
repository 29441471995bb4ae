// Which checkpoints a path on the command line means.
#pragma once

#include <filesystem>
#include <vector>

namespace dm {

/// Of a run directory: its checkpoints, newest first. Of any other directory: itself. Never empty: throws Error (usage) when
/// `path` does not exist or the run has no checkpoint.
std::vector<std::filesystem::path> checkpoints_at(const std::filesystem::path& path);

}  // namespace dm
