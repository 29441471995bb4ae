// What happens between checkpoints: finding the newest intact one, clearing leftovers, removing old ones.
#include "parallel/checkpoint_directory.h"

#include <algorithm>
#include <charconv>
#include <exception>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "parallel/checkpoint.h"
#include "parallel/manifest.h"
#include "runtime/file.h"
#include "runtime/log.h"
#include "runtime/strict_json.h"

namespace dm {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kPrefix = "step_";
constexpr const char* kPartial = ".partial";
constexpr const char* kReplaced = ".replaced";
constexpr const char* kLatest = "latest";

std::string name_of_step(std::int64_t step) {
  return fmt::format("{}{:08}", kPrefix, step);
}

fs::path with_suffix(fs::path path, const char* suffix) {
  return path += suffix;
}

std::vector<fs::path> paths_in(const fs::path& directory) {
  std::vector<fs::path> paths;
  if (!fs::exists(directory)) return paths;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  return paths;
}

// What is wrong with a checkpoint in one line, or nothing. `thorough` reads every byte, otherwise manifest, file sizes and
// headers are looked at.
std::optional<std::string> problem_of(const fs::path& path, bool thorough) {
  try {
    const Checkpoint checkpoint = Checkpoint::open(path);
    if (checkpoint.step() != step_of_name(path.filename().string())) {
      return fmt::format("{}: the manifest is of step {}", path.string(), checkpoint.step());
    }
    const std::vector<Damage> damage = thorough ? checkpoint.verify() : checkpoint.verify_files();
    if (damage.empty()) return std::nullopt;
    return damage.front().message + (damage.size() > 1 ? fmt::format(" (and {} more)", damage.size() - 1) : "");
  } catch (const Error& error) {
    return error.what();
  }
}

void remove_checkpoint(const fs::path& path, const Log& log) {
  // Renamed first, so that a removal cut short leaves a leftover and not a damaged checkpoint.
  const fs::path partial = with_suffix(path, kPartial);
  std::error_code error;
  fs::remove_all(partial, error);
  if (!error) fs::rename(path, partial, error);
  if (!error) fs::remove_all(partial, error);
  if (error) log.warn(fmt::format("cannot remove the old checkpoint {}: {}", path.string(), error.message()));
}

}  // namespace

CheckpointPaths::CheckpointPaths(const fs::path& directory, std::int64_t step)
    : directory(directory),
      final(directory / name_of_step(step)),
      partial(with_suffix(final, kPartial)),
      replaced(with_suffix(final, kReplaced)) {}

std::optional<std::int64_t> step_of_name(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  std::int64_t step = -1;
  std::from_chars(name.data() + kPrefix.size(), name.data() + name.size(), step);
  return step >= 0 && name == name_of_step(step) ? std::optional(step) : std::nullopt;
}

void write_latest(const fs::path& directory, const std::string& name, FaultInjector& faults) {
  const fs::path latest = directory / kLatest;
  const fs::path partial = with_suffix(latest, kPartial);
  write_file(partial, seal(nlohmann::json(name).dump()), &faults);
  rename_path(partial, latest);
  sync_directory(directory, &faults);
}

std::optional<std::string> read_latest(const fs::path& directory) {
  const fs::path latest = directory / kLatest;
  if (!fs::exists(latest)) return std::nullopt;
  const std::string text = read_file(latest);
  const nlohmann::json name = parse_strict_json(unseal(text, latest.string()), latest.string());
  if (!name.is_string() || !step_of_name(name.get<std::string>())) {
    fail(fmt::format("{}: does not hold the name of a checkpoint", latest.string()));
  }
  return name.get<std::string>();
}

void restore_latest(const fs::path& directory, const std::optional<std::string>& name) noexcept {
  try {
    fs::remove(with_suffix(directory / kLatest, kPartial));
    FaultInjector no_faults;
    if (name) {
      write_latest(directory, *name, no_faults);
    } else {
      fs::remove(directory / kLatest);
    }
  } catch (const std::exception&) {
    // The caller already reports the failure that made this necessary; a dangling `latest` is found by its readers.
  }
}

std::vector<fs::path> list_checkpoints(const fs::path& directory) {
  std::vector<std::pair<std::int64_t, fs::path>> found;
  for (const fs::path& path : paths_in(directory)) {
    const auto step = step_of_name(path.filename().string());
    if (step && fs::is_directory(path)) found.emplace_back(*step, path);
  }
  std::sort(found.rbegin(), found.rend());
  std::vector<fs::path> paths;
  for (auto& [step, path] : found) paths.push_back(std::move(path));
  return paths;
}

std::optional<fs::path> newest_intact_checkpoint(const fs::path& directory, const Log& log) {
  try {
    const auto latest = read_latest(directory);
    if (latest && !fs::is_directory(directory / *latest)) {
      log.warn(fmt::format("{}: {} does not exist", (directory / kLatest).string(), *latest));
    }
  } catch (const Error& error) {
    log.warn(error.what());
  }
  for (const fs::path& path : list_checkpoints(directory)) {
    const auto problem = problem_of(path, true);
    if (!problem) return path;
    log.warn(fmt::format("skipping the damaged checkpoint {}: {}", path.filename().string(), *problem));
  }
  return std::nullopt;
}

void remove_partial_checkpoints(const fs::path& directory, const Log& log) {
  for (const fs::path& path : paths_in(directory)) {
    const std::string stem = path.stem().string();
    const bool is_ours = step_of_name(stem) || stem == kLatest;
    if (is_ours && path.extension() == kReplaced && !fs::exists(directory / stem)) {
      log.warn(fmt::format("an interrupted save had put {} aside; it is back", stem));
      rename_path(path, directory / stem);
    } else if (is_ours && (path.extension() == kReplaced || path.extension() == kPartial)) {
      log.warn(fmt::format("removing {}, the leftover of an interrupted save", path.string()));
      fs::remove_all(path);
    }
  }
}

void retain_checkpoints(const fs::path& directory, int keep, std::int64_t keep_every, const Log& log) {
  const std::vector<fs::path> paths = list_checkpoints(directory);
  int intact = 0;
  for (const fs::path& path : paths) {
    const std::int64_t step = *step_of_name(path.filename().string());
    if (intact < std::max(keep, 1)) {
      const auto problem = problem_of(path, intact == 0);
      if (problem) {
        log.warn(fmt::format("the checkpoint {} is damaged and not counted: {}", path.filename().string(), *problem));
      } else {
        ++intact;
      }
    } else if (keep_every == 0 || step % keep_every != 0) {
      remove_checkpoint(path, log);
    }
  }
}

}  // namespace dm
