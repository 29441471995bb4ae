// `densemamba`: finds the subcommand and turns whatever escapes from it into one line and an exit code.
#include <csignal>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "launch/build_info.h"
#include "launch/commands.h"
#include "runtime/error.h"
#include "runtime/options.h"

namespace {

struct Command {
  std::string name;
  int (*run)(int argc, char** argv);
  std::string_view sentence;
};

const std::vector<Command>& commands() {
  static const std::vector<Command> all = {
      {"train", dm::train_command, "Pretrain a model, or go on from its newest intact checkpoint."},
      {"plan", dm::plan_command, "Print the memory, parameters and operations of a run without running it."},
      {"tokenizer", dm::tokenizer_command, "Train a tokenizer, encode, decode, or describe one."},
      {"generate", dm::generate_command, "Continue a text with a trained model."},
      {"inspect", dm::inspect_command, "Print what a checkpoint holds."},
      {"verify", dm::verify_command, "Read every byte of a run's checkpoints and name what is damaged."},
      {"bench-step", dm::bench_step_command, "Time whole training steps on random tokens."},
      {"bench-kernels", dm::bench_kernels_command, "Time every op of a training step against the device's ceilings."},
  };
  return all;
}

void print_help(std::ostream& out) {
  out << "Usage: densemamba COMMAND [options]\nPretrains DenseMamba and Mamba language models.\n\nCommands:\n";
  for (const Command& command : commands()) out << fmt::format("  {:<13} {}\n", command.name, command.sentence);
  out << "\n`densemamba COMMAND --help` lists a command's options; --version says how this program was built.\n"
         "Exit codes: 0 done, 1 failed, 2 wrong usage, 75 failed and worth a relaunch.\n";
}

int run(int argc, char** argv) {
  const std::string word = argc > 1 ? argv[1] : "";
  if (word == "--help" || word == "-h" || word == "help") {
    print_help(std::cout);
    return static_cast<int>(dm::ExitCode::ok);
  }
  if (word == "--version") {
    std::cout << dm::build_description() << "\n";
    return static_cast<int>(dm::ExitCode::ok);
  }
  if (word.empty()) {
    print_help(std::cerr);
    return static_cast<int>(dm::ExitCode::usage);
  }
  std::vector<std::string> names;
  for (const Command& command : commands()) {
    if (command.name == word) return command.run(argc - 2, argv + 2);
    names.push_back(command.name);
  }
  const std::string nearest = dm::nearest_name(word, names);
  dm::fail(nearest.empty() ? fmt::format("unknown command '{}'; `densemamba --help` lists them", word)
                           : fmt::format("unknown command '{}'; did you mean '{}'?", word, nearest),
           dm::ExitCode::usage);
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // A closed pipe is a failed write, not the end of a training run.
  try {
    return run(argc, argv);
  } catch (...) {
    return dm::report_current_exception();
  }
}
