// Looking for a checkpoint, and the rules of resuming.
#include "launch/resume.h"

#include <algorithm>

#include <fmt/format.h>

#include "parallel/checkpoint.h"
#include "runtime/error.h"

namespace dm {
namespace {

/// Keys whose change makes another training run of the same model.
bool shapes_training(const std::string& key) {
  return key.starts_with("optimizer.") || key == "train.batch" || key == "train.sequence" || key == "train.steps";
}

}  // namespace

std::optional<std::filesystem::path> choose_checkpoint(const std::string& resume, const std::filesystem::path& run_directory,
                                                       const Log& log) {
  std::filesystem::path directory = run_directory / "checkpoints";
  if (resume == "none") {
    if (!list_checkpoints(directory).empty()) {
      fail(fmt::format("{} has checkpoints; go on from them (--resume auto) or start in another --run.dir",
                       run_directory.string()),
           ExitCode::usage);
    }
    return std::nullopt;
  }
  if (resume != "auto" && resume != "must") {
    if (!std::filesystem::is_directory(resume))
      fail(fmt::format("--resume {}: there is no such directory", resume), ExitCode::usage);
    if (!std::filesystem::is_directory(std::filesystem::path(resume) / "checkpoints")) return resume;
    directory = std::filesystem::path(resume) / "checkpoints";
  }
  std::optional<std::filesystem::path> newest = newest_intact_checkpoint(directory, log);
  if (!newest && !list_checkpoints(directory).empty()) {
    fail(fmt::format(
        "every checkpoint under {} is damaged; `densemamba verify` says how; to start over choose another --run.dir",
        directory.string()));
  }
  if (!newest && resume != "auto")
    fail(fmt::format("{} has no checkpoint to resume from", directory.string()), ExitCode::usage);
  return newest;
}

std::vector<std::string> compare_options(const std::vector<std::pair<std::string, std::string>>& then,
                                         const std::vector<std::pair<std::string, std::string>>& now,
                                         const std::vector<std::string>& overrides) {
  std::vector<std::string> differences, architecture, training;
  for (const auto& [key, value] : now) {
    const auto at = std::find_if(then.begin(), then.end(), [&](const auto& entry) { return entry.first == key; });
    if (at == then.end() || at->second == value) continue;
    const std::string line = fmt::format("{}: {} → {}", key, at->second.empty() ? "(none)" : at->second, value);
    differences.push_back(line);
    if (key.starts_with("model.")) architecture.push_back(line);
    if (shapes_training(key) && std::find(overrides.begin(), overrides.end(), key) == overrides.end())
      training.push_back(line);
  }
  if (!architecture.empty()) {
    fail(fmt::format("the checkpoint is of another model ({}); give the same model options or another --run.dir",
                     fmt::join(architecture, "; ")),
         ExitCode::usage);
  }
  if (!training.empty()) {
    fail(fmt::format("the checkpoint was trained with other settings ({}); give the same, or allow each with --override KEY",
                     fmt::join(training, "; ")),
         ExitCode::usage);
  }
  return differences;
}

}  // namespace dm
