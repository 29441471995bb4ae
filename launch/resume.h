// Which checkpoint a run goes on from, and what may differ when it does.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/log.h"

namespace dm {

/// `resume` is auto (the newest intact checkpoint of the run, if any), must (the same, or an Error), none (a run directory
/// that has checkpoints is refused: nothing is silently started over), or the path of a checkpoint or of a run directory.
/// A path that is not the run's own newest checkpoint begins a run: a run directory that has checkpoints is refused, because
/// its later ones would be taken for those of the new history. Throws Error when every checkpoint of the run is damaged.
/// Rank 0 calls it.
std::optional<std::filesystem::path> choose_checkpoint(const std::string& resume, const std::filesystem::path& run_directory,
                                                       const Log& log);

/// Compares the options of a checkpoint with those of the run that resumes it. Returns a line for every difference. Throws
/// Error (usage) when the architecture (model.*) differs, or when a key that shapes the training (optimizer.*, train.batch,
/// train.sequence, train.steps) differs and is not among `overrides`; the message holds the differences.
std::vector<std::string> compare_options(const std::vector<std::pair<std::string, std::string>>& then,
                                         const std::vector<std::pair<std::string, std::string>>& now,
                                         const std::vector<std::string>& overrides);

/// Throws Error (usage) naming an element of `overrides` that is no key for which --override means anything.
void check_overrides(const std::vector<std::pair<std::string, std::string>>& options,
                     const std::vector<std::string>& overrides);

}  // namespace dm
