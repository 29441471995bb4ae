// `densemamba verify`: reads every byte of checkpoints and says of each, in one line, whether it is intact.
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "launch/checkpoint_path.h"
#include "launch/commands.h"
#include "parallel/checkpoint.h"
#include "runtime/error.h"
#include "runtime/options.h"

namespace dm {
namespace {

/// What is wrong with a checkpoint, one sentence each. Other checkpoints are still looked at, so a manifest that does not
/// open is an answer here, not a failure of the program.
std::vector<std::string> damage_of(const std::filesystem::path& path) {
  std::vector<std::string> sentences;
  try {
    for (const Damage& damage : Checkpoint::open(path).verify()) sentences.push_back(damage.file + ": " + damage.message);
  } catch (const Error& error) {
    sentences.emplace_back(error.what());
  }
  return sentences;
}

}  // namespace

int verify_command(int argc, char** argv) {
  std::vector<std::string> paths;
  OptionTable table(
      "densemamba verify PATH...",
      "Reads every byte of checkpoints; exits with 1 when one is damaged. PATH is a checkpoint or a run directory.");
  table.add("path", paths, "Checkpoints, or run directories, whose checkpoints are all read.");
  table.positional("path");
  if (table.parse(argc, argv, std::cout) != ParseOutcome::run) return static_cast<int>(ExitCode::ok);
  if (paths.empty()) fail("give a checkpoint or a run directory: densemamba verify PATH", ExitCode::usage);

  bool intact = true;
  for (const std::string& path : paths) {
    for (const std::filesystem::path& checkpoint : checkpoints_at(path)) {
      const std::vector<std::string> damages = damage_of(checkpoint);
      if (damages.empty()) std::cout << fmt::format("intact   {}\n", checkpoint.string());
      for (const std::string& damage : damages) std::cout << fmt::format("DAMAGED  {}: {}\n", checkpoint.string(), damage);
      intact = intact && damages.empty();
    }
  }
  return static_cast<int>(intact ? ExitCode::ok : ExitCode::failure);
}

}  // namespace dm
