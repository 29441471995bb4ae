// The names inside a directory of checkpoints, and its pointer to the latest one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "runtime/fault.h"

namespace dm {

/// Where one checkpoint, its temporary siblings and `latest` lie under `directory`.
struct CheckpointPaths {
  CheckpointPaths(const std::filesystem::path& directory, std::int64_t step);

  std::filesystem::path directory;
  std::filesystem::path final;     ///< "step_%08d"
  std::filesystem::path partial;   ///< Being written, or being removed; never read.
  std::filesystem::path replaced;  ///< An older checkpoint of the same step, put aside until the new one stands.
};

inline constexpr const char* kManifestName = "manifest.json";

/// The step in a checkpoint directory's name, or nothing when it is not such a name.
std::optional<std::int64_t> step_of_name(const std::string& name);

/// Makes `latest` point to `name` by a temporary file and a rename, durably.
void write_latest(const std::filesystem::path& directory, const std::string& name, FaultInjector& faults);
/// The name that `latest` holds, or nothing when there is no such file. Throws Error when it is damaged.
std::optional<std::string> read_latest(const std::filesystem::path& directory);
/// Makes `latest` hold `name`, or removes it when there was none; a failure is left for read_latest to find.
void restore_latest(const std::filesystem::path& directory, const std::optional<std::string>& name) noexcept;

}  // namespace dm
