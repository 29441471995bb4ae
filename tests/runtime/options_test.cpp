// The options table: order of sources, error messages, round trips, and a .cfg parser that survives any bytes.
#include "runtime/options.h"

#include <gtest/gtest.h>
#include <unistd.h>
#include <cmath>
#include <fstream>
#include <sstream>

#include "runtime/error.h"
#include "runtime/random.h"

namespace dm {
namespace {

struct Fields {
  std::string dir = "runs/default";
  std::string device = "auto";
  std::vector<std::string> files;
  std::int64_t batch = 8;
  double lr = 1e-3;
  double beta = 0.9;
  bool fast = false;
  std::string resume = "auto";
};

OptionTable make_table(Fields& fields, std::filesystem::path presets = {}) {
  OptionTable table("program [options]", "Does nothing.", std::move(presets));
  table.add("resume", fields.resume, "Where to begin.");
  table.section("run", "Where it runs.");
  table.add("run.dir", fields.dir, "Directory.");
  table.add("run.device", fields.device, "Device.", {"auto", "cpu", "cuda"});
  table.add("run.files", fields.files, "Files.");
  table.section("train", "How it trains.");
  table.add("train.batch", fields.batch, "Sequences.", {.min = 1, .max = 1024});
  table.add("train.lr", fields.lr, "Learning rate.", {.min = 0});
  table.add("train.beta", fields.beta, "Momentum.", {.min = 0, .max = 1, .below_max = true});
  table.add("train.fast", fields.fast, "Faster.");
  return table;
}

ParseOutcome parse(OptionTable& table, std::vector<const char*> words, std::ostream& out = std::cout) {
  return table.parse(static_cast<int>(words.size()), words.data(), out);
}

/// The message of the usage error that `action` throws.
template <class Action>
std::string usage_error(const Action& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    return error.what();
  }
  return "no error";
}

std::string command_line_error(std::vector<const char*> words) {
  Fields fields;
  OptionTable table = make_table(fields);
  return usage_error([&] { parse(table, words); });
}

std::string config_error(std::string_view text) {
  Fields fields;
  OptionTable table = make_table(fields);
  return usage_error([&] { table.parse_config(text, "a.cfg"); });
}

class OptionFiles : public ::testing::Test {
 protected:
  OptionFiles() : directory_(std::filesystem::temp_directory_path() / ("options_test." + std::to_string(getpid()))) {
    std::filesystem::create_directories(directory_);
  }
  ~OptionFiles() override { std::filesystem::remove_all(directory_); }
  std::string write(const std::string& name, const std::string& text) {
    std::ofstream(directory_ / name) << text;
    return (directory_ / name).string();
  }
  std::filesystem::path directory_;
};

TEST(Options, EveryTypeFromTheCommandLine) {
  Fields fields;
  OptionTable table = make_table(fields);
  EXPECT_EQ(parse(table, {"--run.dir", "a b", "--run.device=cpu", "--run.files", "x,y", "--run.files", "z", "--train.batch",
                          "3", "--train.lr", "2.5e-4", "--train.fast", "--resume", "none"}),
            ParseOutcome::run);
  EXPECT_EQ(fields.dir, "a b");
  EXPECT_EQ(fields.device, "cpu");
  EXPECT_EQ(fields.files, (std::vector<std::string>{"x", "y", "z"}));
  EXPECT_EQ(fields.batch, 3);
  EXPECT_EQ(fields.lr, 2.5e-4);
  EXPECT_TRUE(fields.fast);
  EXPECT_EQ(fields.resume, "none");
}

TEST(Options, LastOnTheCommandLineWins) {
  Fields fields;
  OptionTable table = make_table(fields);
  parse(table, {"--train.fast", "--train.batch", "3", "--train.fast=false", "--train.batch", "4"});
  EXPECT_EQ(fields.batch, 4);
  EXPECT_FALSE(fields.fast);
}

TEST_F(OptionFiles, LaterSourcesOverrideEarlierOnes) {
  const std::string first = write("first.cfg", "[train]\nbatch = 2\nlr = 0.5\n[run]\nfiles = a,b\nfiles = c\n");
  const std::string second = write("second.cfg", "# later\n[train]\r\nbatch = 4 # four\r\n[run]\nfiles = d\n");
  Fields fields;
  OptionTable table = make_table(fields);
  parse(table, {"--run.dir", "here", "--config", first.c_str(), "--config", second.c_str()});
  EXPECT_EQ(fields.batch, 4);
  EXPECT_EQ(fields.lr, 0.5);
  EXPECT_EQ(fields.files, std::vector<std::string>{"d"});
  parse(table, {"--train.batch", "16", "--run.files", "e", "--config", first.c_str()});
  EXPECT_EQ(fields.batch, 16);
  EXPECT_EQ(fields.files, std::vector<std::string>{"e"});
}

TEST_F(OptionFiles, PresetsAreFoundByName) {
  write("small.cfg", "[train]\nbatch = 2\n");
  Fields fields;
  OptionTable table = make_table(fields, directory_);
  parse(table, {"--config", "small"});
  EXPECT_EQ(fields.batch, 2);
  fields.batch = 8;
  parse(table, {"--config", "small.cfg"});
  EXPECT_EQ(fields.batch, 2);
  EXPECT_EQ(usage_error([&] {
              parse(table, {"--config", "smal"});
            }),
            "--config smal: no such file or preset; did you mean 'small'?");
  EXPECT_EQ(usage_error([&] {
              parse(table, {"--config", "absent"});
            }),
            "--config absent: no such file or preset; presets lie in '" + directory_.string() + "'");
  EXPECT_EQ(usage_error([&] { parse(table, {"--config", "./absent"}); }), "--config ./absent: cannot read './absent'");
  EXPECT_NE(usage_error([&] { parse(table, {"--config", directory_.c_str()}); }).find("cannot read"), std::string::npos);
}

TEST(Options, WrongWordsOnTheCommandLine) {
  EXPECT_EQ(command_line_error({"--train.bacth", "3"}), "unknown option '--train.bacth'; did you mean '--train.batch'?");
  EXPECT_EQ(command_line_error({"--batch", "3"}), "unknown option '--batch'; did you mean '--train.batch'?");
  EXPECT_EQ(command_line_error({"--confg", "3"}), "unknown option '--confg'; did you mean '--config'?");
  EXPECT_EQ(command_line_error({"--zzzzzzzz"}), "unknown option '--zzzzzzzz'; --help lists them all");
  EXPECT_EQ(command_line_error({"train"}), "'train' is one word too many; options begin with --");
  EXPECT_EQ(command_line_error({"--train.batch"}), "the required argument for option '--train.batch' is missing");
  EXPECT_EQ(command_line_error({"--train.batch", "0"}),
            "--train.batch is '0'; expected an integer of at least 1 and at most 1024");
  for (const char* bad : {"", "3x", "3.5", " 3", "99999999999999999999", "0x10"})
    EXPECT_NE(command_line_error({"--train.batch", bad}), "no error") << bad;
  EXPECT_EQ(command_line_error({"--train.lr", "-1"}), "--train.lr is '-1'; expected a number of at least 0");
  for (const char* bad : {"nan", "inf", "1e999", "1,5", "one"})
    EXPECT_NE(command_line_error({"--train.lr", bad}), "no error") << bad;
  EXPECT_EQ(command_line_error({"--train.beta", "1"}), "--train.beta is '1'; expected a number of at least 0 and below 1");
  EXPECT_EQ(command_line_error({"--train.fast=yes"}), "--train.fast is 'yes'; expected true or false");
  EXPECT_EQ(command_line_error({"--run.device", "gpu"}), "--run.device is 'gpu'; expected one of auto, cpu, cuda");
  EXPECT_EQ(command_line_error({"--run.files", "a,,b"}), "--run.files is 'a,,b'; expected words separated by single commas");
}

TEST(Options, WrongLinesInAFileAreNamed) {
  EXPECT_EQ(config_error("[train]\n\n# x\nbatsch = 4\n"),
            "a.cfg:4: unknown option 'train.batsch'; did you mean 'train.batch'?");
  EXPECT_EQ(config_error("[train]\nbatch = many\n"),
            "a.cfg:2: train.batch is 'many'; expected an integer of at least 1 and at most 1024");
  EXPECT_EQ(config_error("[train]\nbatch = 1\nbatch = 2\n"), "a.cfg:3: train.batch is given a second time");
  EXPECT_EQ(config_error("resume = none\n"), "a.cfg:1: 'resume' is given on the command line only");
  EXPECT_EQ(config_error("[train]\nbatch\n"), "a.cfg:2: 'batch' is neither 'key = value', '[section]' nor a comment");
  EXPECT_EQ(config_error("[]\nbatch = 1\n"), "a.cfg:1: a section has a name");
  EXPECT_EQ(config_error("config = other.cfg\n"), "a.cfg:1: unknown option 'config'; --help lists them all");
}

TEST(Options, PrintedConfigurationRoundTrips) {
  Fields fields;
  fields.dir = "a = b; [c]";
  fields.device = "cpu";
  fields.files = {"x", "y z"};
  fields.batch = 7;
  fields.fast = true;
  for (double lr : {0.1 + 0.2, 1e-300, 5e-324, 1.7976931348623157e308, 1.0 / 3, 600.0, 0.0}) {
    fields.lr = lr;
    std::ostringstream printed;
    make_table(fields).print_config(printed);
    Fields again;
    again.files = {"other"};
    OptionTable table = make_table(again);
    table.parse_config(printed.str(), "printed");
    EXPECT_EQ(again.lr, lr);
    EXPECT_EQ(table.values(), make_table(fields).values());
    std::ostringstream twice;
    table.print_config(twice);
    EXPECT_EQ(twice.str(), printed.str());
  }
}

TEST(Options, EmptyValuesRoundTrip) {
  Fields fields;
  fields.dir = "";
  std::ostringstream printed;
  make_table(fields).print_config(printed);
  Fields again;
  again.files = {"other"};
  make_table(again).parse_config(printed.str(), "printed");
  EXPECT_EQ(again.dir, "");
  EXPECT_TRUE(again.files.empty());
}

TEST(Options, TextThatNoFileHoldsIsRefused) {
  for (const char* text : {"a#b", "a\nb", " a", "a "}) {
    Fields fields;
    fields.dir = text;
    std::ostringstream out;
    EXPECT_NE(usage_error([&] { make_table(fields).print_config(out); }).find("run.dir"), std::string::npos) << text;
  }
}

TEST(Options, ValuesGoThroughMetadata) {
  Fields fields;
  fields.dir = "a#b";
  fields.files = {"x", "y"};
  fields.batch = 9;
  Fields again;
  OptionTable table = make_table(again);
  table.set_values(make_table(fields).values(), "checkpoint");
  EXPECT_EQ(again.dir, "a#b");
  EXPECT_EQ(again.files, fields.files);
  EXPECT_EQ(again.batch, 9);
  EXPECT_EQ(usage_error([&] {
              table.set_values({{"train.batch", "0"}}, "checkpoint");
            }),
            "checkpoint: train.batch is '0'; expected an integer of at least 1 and at most 1024");
  EXPECT_EQ(usage_error([&] {
              table.set_values({{"model.width", "0"}}, "checkpoint");
            }),
            "checkpoint: unknown option 'model.width'; --help lists them all");
}

TEST(Options, HelpComesFromTheTable) {
  Fields fields;
  OptionTable table = make_table(fields);
  std::ostringstream out;
  EXPECT_EQ(parse(table, {"--train.batch", "5", "--help"}, out), ParseOutcome::help_printed);
  const std::string help = out.str();
  for (const char* part : {"Usage: program [options]", "[train] How it trains", "--train.batch INTEGER (=8)",
                           "(auto, cpu, cuda)", "--print-config", "--resume TEXT (=auto)"})
    EXPECT_NE(help.find(part), std::string::npos) << part << "\n" << help;
}

TEST(Options, PrintConfigShowsWhatWouldRun) {
  Fields fields;
  OptionTable table = make_table(fields);
  std::ostringstream out;
  EXPECT_EQ(parse(table, {"--print-config", "--train.batch", "5"}, out), ParseOutcome::config_printed);
  EXPECT_NE(out.str().find("\nbatch = 5\n"), std::string::npos);
  EXPECT_EQ(out.str().find("resume"), std::string::npos);
}

TEST(Options, PositionalWords) {
  std::string path;
  std::vector<std::string> files;
  OptionTable one("program PATH", "Takes one word.");
  one.add("path", path, "Path.");
  one.positional("path");
  parse(one, {"here"});
  EXPECT_EQ(path, "here");
  EXPECT_EQ(usage_error([&] { parse(one, {"here", "there"}); }), "'there' is one word too many; options begin with --");
  EXPECT_EQ(usage_error([&] { parse(one, {"--config", "x"}); }), "unknown option '--config'; --help lists them all");
  OptionTable many("program FILE...", "Takes many words.");
  many.add("files", files, "Files.");
  many.positional("files");
  parse(many, {"a", "--files", "b", "c,d"});
  EXPECT_EQ(files, (std::vector<std::string>{"a", "b", "c", "d"}));
}

TEST(Options, NearestName) {
  const std::vector<std::string> names = {"train", "plan", "tokenizer"};
  EXPECT_EQ(nearest_name("trian", names), "train");
  EXPECT_EQ(nearest_name("tokeniser", names), "tokenizer");
  EXPECT_EQ(nearest_name("x", names), "");
  EXPECT_EQ(nearest_name("hlep", {"optimizer.clip", "help"}), "help");
  EXPECT_EQ(nearest_name("", names), "");
}

// Random edits of a good file: every one either parses, and then round-trips, or is refused with a usage error.
TEST(Options, MutatedFilesNeverBreakTheParser) {
  const std::string good =
      "# a comment\n[run]\ndir = runs/a\ndevice = cpu\nfiles = a,b\nfiles = c\n\n[train]\nbatch = 12\nlr = 1e-3\nfast = "
      "true\n";
  constexpr std::string_view kAlphabet = "[]=#,.\n\r\t \"\\-+0e9xtrain\x00\xff\x80";
  const RandomStream random(1, "options fuzz");
  int parsed = 0, refused = 0;
  std::uint64_t draw = 0;
  const auto below = [&](std::size_t count) {
    return static_cast<std::size_t>(random.uniform(draw++) * static_cast<float>(count)) % count;
  };
  for (int round = 0; round < 3000; ++round) {
    std::string text = good;
    for (std::size_t edits = 1 + below(4); edits > 0 && !text.empty(); --edits) {
      const std::size_t at = below(text.size());
      switch (below(4)) {
        case 0:
          text.erase(at, 1 + below(8));
          break;
        case 1:
          text[at] = kAlphabet[below(kAlphabet.size())];
          break;
        case 2:
          text.insert(at, 1 + below(3), kAlphabet[below(kAlphabet.size())]);
          break;
        default:
          text.insert(at, good.substr(below(good.size()), below(20)));
      }
    }
    Fields fields;
    OptionTable table = make_table(fields);
    try {
      table.parse_config(text, "fuzz.cfg");
      ++parsed;
      Fields again;
      OptionTable second = make_table(again);
      second.set_values(table.values(), "again");
      EXPECT_EQ(second.values(), table.values()) << text;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::usage) << text;
      EXPECT_EQ(std::string(error.what()).rfind("fuzz.cfg:", 0), 0u) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(parsed, 100);
  EXPECT_GT(refused, 300);
}

}  // namespace
}  // namespace dm
