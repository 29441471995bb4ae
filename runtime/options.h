// One table of options: it feeds the command line, the .cfg files, --help, --print-config and the checkpoint's metadata.
#pragma once

#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace dm {

/// The values that a number may have: min ≤ value ≤ max, or value < max where `below_max`.
template <class Number>
struct Range {
  Number min = std::numeric_limits<Number>::lowest();
  Number max = std::numeric_limits<Number>::max();
  bool below_max = false;
};

/// What `OptionTable::parse` did. Only after `run` is there anything left to do.
enum class ParseOutcome : std::uint8_t { run, help_printed, config_printed };

/// The known name that `word` was probably meant to be (edit distance, also to the part behind a name's last dot), or ""
/// when nothing is near.
std::string nearest_name(std::string_view word, const std::vector<std::string>& names);

/// Keys bound to fields of the caller, which hold the defaults when they are added and outlive the table.
///
/// A key is "section.name", as in `--train.batch 8` and as in a .cfg file
///     [train]
///     batch = 8        # Boost.Program_options' syntax: comments, blank lines, sections
/// or a bare name, which exists on the command line only. A later source overrides an earlier one: defaults, then each
/// `--config FILE`, then the command line. On one command line the last value of a key wins; a file may give a key once.
/// Lists are separated by commas or given by repeating the key: the first value from a source replaces what earlier
/// sources said, further ones append. No element of a list holds a comma.
///
/// A wrong key or value throws Error (usage): one line with file and line number, the key, the value, what is
/// expected and, for an unknown key, the nearest one.
class OptionTable {
 public:
  /// `usage` and `summary` open --help: "densemamba verify PATH..." and one sentence. `presets` is a directory:
  /// `--config NAME` without a slash also means `<presets>/NAME.cfg`.
  OptionTable(std::string usage, std::string summary, std::filesystem::path presets = {});

  /// Every section is declared once, with one sentence for --help, before its keys.
  void section(std::string name, std::string sentence);
  void add(std::string key, std::string& field, std::string help, std::vector<std::string> choices = {});
  void add(std::string key, std::int64_t& field, std::string help, Range<std::int64_t> range = {});
  void add(std::string key, double& field, std::string help, Range<double> range = {});
  /// On the command line `--key` alone means true, `--key=false` false.
  void add(std::string key, bool& field, std::string help);
  void add(std::string key, std::vector<std::string>& field, std::string help);
  /// Words that are not options go to this key: all of them to a list, one to a string.
  void positional(const std::string& key);

  /// Reads the arguments (without the program's name) and what --config names. --help and, where there are sections,
  /// --print-config write to `out`.
  ParseOutcome parse(int argc, const char* const* argv, std::ostream& out);
  /// Applies the text of a .cfg file; `name` is what errors call it.
  void parse_config(std::string_view text, const std::string& name);
  /// Applies values as values() gives them. `source` opens the error line, as in "step_00000100/manifest.json".
  void set_values(const std::vector<std::pair<std::string, std::string>>& values, const std::string& source);

  /// Every key of a section and its value, in table order; numbers in their shortest exact form.
  std::vector<std::pair<std::string, std::string>> values() const;
  void print_help(std::ostream& out) const;
  /// A .cfg file that reproduces values() exactly. Throws Error (usage) for a text that no .cfg file can hold.
  void print_config(std::ostream& out) const;

 private:
  struct Text {
    std::string* field;
    std::vector<std::string> choices;
  };
  struct Integer {
    std::int64_t* field;
    Range<std::int64_t> range;
  };
  struct Real {
    double* field;
    Range<double> range;
  };
  struct Flag {
    bool* field;
  };
  struct List {
    std::vector<std::string>* field;
  };
  using Field = std::variant<Text, Integer, Real, Flag, List>;
  struct Key {
    std::string name;
    Field field;
    std::string help;
    std::string default_text;
    bool in_section() const { return name.find('.') != std::string::npos; }
  };
  struct Section {
    std::string name;
    std::string sentence;
  };
  using Seen = std::set<std::string>;

  void add_key(std::string name, Field field, std::string help);
  const Key* find(std::string_view name) const;
  [[noreturn]] void fail_unknown(const std::string& where, std::string_view key, bool in_file) const;
  /// Sets one key; `seen` holds the keys that the same source has set before.
  static void assign(const Key& key, const std::string& value, const std::string& where, Seen& seen);
  static std::string expectation(const Field& field);
  static std::string text_of(const Field& field);
  void read_config_file(const std::string& name);

  std::string usage_;
  std::string summary_;
  std::filesystem::path presets_;
  std::vector<Section> sections_;
  std::vector<Key> keys_;
  std::string positional_;
};

}  // namespace dm
