// Looking for a checkpoint, and the rules of resuming.
#include "launch/resume.h"

#include <algorithm>

#include <fmt/format.h>

#include "parallel/checkpoint.h"
#include "runtime/error.h"
#include "runtime/options.h"

namespace dm {
namespace fs = std::filesystem;
namespace {

/// Keys whose change makes another training run of the same model.
bool shapes_training(const std::string& key) {
  return key.starts_with("optimizer.") || key == "train.batch" || key == "train.sequence" || key == "train.steps";
}

/// The newest intact checkpoint under `directory`; nothing when it has none at all.
std::optional<fs::path> newest_of(const fs::path& directory, const Log& log) {
  std::optional<fs::path> newest = newest_intact_checkpoint(directory, log);
  if (!newest && !list_checkpoints(directory).empty()) {
    fail(fmt::format(
        "every checkpoint under {} is damaged; `densemamba verify` says how; to start over choose another --run.dir",
        directory.string()));
  }
  return newest;
}

/// What the path given to --resume means for a run whose own checkpoints are under `directory`.
fs::path checkpoint_at(const fs::path& path, const fs::path& directory, const Log& log) {
  if (!fs::is_directory(path)) fail(fmt::format("--resume {}: there is no such directory", path.string()), ExitCode::usage);
  const fs::path inside = path / "checkpoints";
  const std::optional<fs::path> chosen = fs::is_directory(inside) ? newest_of(inside, log) : path;
  if (!chosen) fail(fmt::format("--resume {}: the run has no checkpoint", path.string()), ExitCode::usage);
  if (fs::is_directory(inside) && fs::equivalent(inside, directory)) return *chosen;
  const std::vector<fs::path> own = list_checkpoints(directory);
  if (!own.empty() && !fs::equivalent(*chosen, own.front())) {
    fail(fmt::format("--resume {}: {} goes on from {}; go on from that (--resume auto) or start in another --run.dir",
                     path.string(), directory.parent_path().string(), own.front().filename().string()),
         ExitCode::usage);
  }
  return *chosen;
}

}  // namespace

std::optional<fs::path> choose_checkpoint(const std::string& resume, const fs::path& run_directory, const Log& log) {
  const fs::path directory = run_directory / "checkpoints";
  if (resume == "none") {
    if (!list_checkpoints(directory).empty()) {
      fail(fmt::format("{} has checkpoints; go on from them (--resume auto) or start in another --run.dir",
                       run_directory.string()),
           ExitCode::usage);
    }
    return std::nullopt;
  }
  if (resume != "auto" && resume != "must") return checkpoint_at(resume, directory, log);
  std::optional<fs::path> newest = newest_of(directory, log);
  if (!newest && resume == "must")
    fail(fmt::format("--resume must: {} has no checkpoint", run_directory.string()), ExitCode::usage);
  return newest;
}

std::vector<std::string> compare_options(const std::vector<std::pair<std::string, std::string>>& then,
                                         const std::vector<std::pair<std::string, std::string>>& now,
                                         const std::vector<std::string>& overrides) {
  std::vector<std::string> differences, architecture, training;
  for (const auto& option : now) {
    const std::string &key = option.first, &value = option.second;
    const auto at = std::find_if(then.begin(), then.end(), [&](const auto& entry) { return entry.first == key; });
    if (at == then.end() || at->second == value) continue;
    const auto shown = [](const std::string& text) { return text.empty() ? "(none)" : text; };
    const std::string line = fmt::format("{}: {} → {}", key, shown(at->second), shown(value));
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

void check_overrides(const std::vector<std::pair<std::string, std::string>>& options,
                     const std::vector<std::string>& overrides) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : options) {
    if (shapes_training(key)) keys.push_back(key);
  }
  for (const std::string& key : overrides) {
    if (std::find(keys.begin(), keys.end(), key) != keys.end()) continue;
    const std::string nearest = nearest_name(key, keys);
    fail(fmt::format("--override {}: not a key that needs it{}; those are optimizer.*, train.batch, train.sequence and "
                     "train.steps",
                     key, nearest.empty() ? "" : fmt::format(" (did you mean {}?)", nearest)),
         ExitCode::usage);
  }
}

}  // namespace dm
