// `densemamba tokenizer`: trains a SentencePiece model, encodes, decodes, describes.
#include <charconv>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <simdjson.h>

#include "dataloader/source.h"
#include "dataloader/tokenizer.h"
#include "launch/commands.h"
#include "runtime/error.h"
#include "runtime/options.h"

namespace dm {
namespace {

constexpr const char* kTokenizerHelp = "'bytes', or a SentencePiece model file.";

std::string read_standard_input() {
  return {std::istreambuf_iterator<char>(std::cin), {}};
}

void train(int argc, char** argv) {
  std::vector<std::string> input;
  std::string output;
  std::int64_t vocabulary = 32000, sample_bytes = 10'000'000;
  OptionTable table("densemamba tokenizer train --input FILES --output MODEL [--vocabulary N]",
                    "Trains a SentencePiece BPE model with LLaMA's flags on documents in The Pile's format.");
  table.add("input", input, "Files or globs, .jsonl.zst or .jsonl.");
  table.add("output", output, "The model file to write.");
  table.add("vocabulary", vocabulary, "Number of pieces.", {.min = 260, .max = 1 << 20});
  table.add("sample_bytes", sample_bytes, "Bytes of text to learn from.", {.min = 1});
  table.positional("input");
  if (table.parse(argc, argv, std::cout) != ParseOutcome::run) return;
  if (input.empty()) fail("--input is missing: the text to train on", ExitCode::usage);
  if (output.empty()) fail("--output is missing: the model file to write", ExitCode::usage);
  train_tokenizer(expand_files(input), vocabulary, output, sample_bytes);
  std::cout << fmt::format("{}: {} pieces\n", output, make_tokenizer(output)->vocabulary());
}

void encode(int argc, char** argv) {
  std::string name;
  OptionTable table("densemamba tokenizer encode TOKENIZER < TEXT",
                    "Prints the ids of the text on standard input on one line.");
  table.add("tokenizer", name, kTokenizerHelp);
  table.positional("tokenizer");
  if (table.parse(argc, argv, std::cout) != ParseOutcome::run) return;
  const auto tokenizer = make_tokenizer(name);
  const std::string text = read_standard_input();
  if (!simdjson::validate_utf8(text.data(), text.size())) fail("standard input is not valid UTF-8");
  std::vector<std::int32_t> ids;
  tokenizer->encode(text, ids);
  std::cout << fmt::format("{}\n", fmt::join(ids, " "));
}

void decode(int argc, char** argv) {
  std::string name;
  OptionTable table("densemamba tokenizer decode TOKENIZER < IDS", "Prints the text of the ids on standard input.");
  table.add("tokenizer", name, kTokenizerHelp);
  table.positional("tokenizer");
  if (table.parse(argc, argv, std::cout) != ParseOutcome::run) return;
  const auto tokenizer = make_tokenizer(name);
  std::istringstream words(read_standard_input());
  std::vector<std::int32_t> ids;
  for (std::string word; words >> word;) {
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), ids.emplace_back());
    if (error != std::errc{} || end != word.data() + word.size())
      fail(fmt::format("standard input: '{}' is no token id", word));
  }
  std::cout << tokenizer->decode(ids);
}

void info(int argc, char** argv) {
  std::string name;
  OptionTable table("densemamba tokenizer info TOKENIZER", "Prints what a tokenizer is.");
  table.add("tokenizer", name, kTokenizerHelp);
  table.positional("tokenizer");
  if (table.parse(argc, argv, std::cout) != ParseOutcome::run) return;
  const auto tokenizer = make_tokenizer(name);
  std::cout << fmt::format("name {}\nvocabulary {}\nbos {}\nhash {}\n", tokenizer->name(), tokenizer->vocabulary(),
                           tokenizer->bos(), tokenizer->hash());
}

}  // namespace

int tokenizer_command(int argc, char** argv) {
  const std::vector<std::pair<std::string, void (*)(int, char**)>> actions = {
      {"train", train}, {"encode", encode}, {"decode", decode}, {"info", info}};
  std::vector<std::string> names;
  for (const auto& action : actions) names.push_back(action.first);
  const std::string usage = fmt::format("densemamba tokenizer {} [--help]", fmt::join(names, "|"));
  const std::string word = argc > 0 ? argv[0] : "";
  if (word == "--help" || word == "-h") {
    std::cout << "Usage: " << usage << "\n";
    return static_cast<int>(ExitCode::ok);
  }
  for (const auto& [name, run] : actions) {
    if (name != word) continue;
    run(argc - 1, argv + 1);
    return static_cast<int>(ExitCode::ok);
  }
  const std::string nearest = nearest_name(word, names);
  fail(nearest.empty() ? "usage: " + usage : fmt::format("unknown action '{}'; did you mean '{}'?", word, nearest),
       ExitCode::usage);
}

}  // namespace dm
