// Boost.Program_options splits the command line and the .cfg lines; values, checks and messages are the table's.
#include "runtime/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iterator>
#include <numeric>
#include <ostream>
#include <sstream>
#include <type_traits>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <boost/program_options.hpp>

#include "runtime/error.h"

namespace dm {
namespace {

namespace po = boost::program_options;

[[noreturn]] void fail_usage(const std::string& message) {
  fail(message, ExitCode::usage);
}

/// Levenshtein distance, one row at a time.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

template <class Number>
bool parse_number(const std::string& text, const Range<Number>& range, Number& value) {
  Number parsed{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
  if (error != std::errc{} || end != text.data() + text.size()) return false;
  if constexpr (std::is_floating_point_v<Number>) {
    if (!std::isfinite(parsed)) return false;
  }
  if (parsed < range.min || parsed > range.max || (range.below_max && parsed == range.max)) return false;
  value = parsed;
  return true;
}

template <class Number>
std::string describe(std::string_view what, const Range<Number>& range) {
  const Range<Number> anything;
  const bool has_min = range.min != anything.min, has_max = range.max != anything.max;
  const std::string_view upper = range.below_max ? "below" : "at most";
  if (has_min && has_max) return fmt::format("{} of at least {} and {} {}", what, range.min, upper, range.max);
  if (has_min) return fmt::format("{} of at least {}", what, range.min);
  if (has_max) return fmt::format("{} of {} {}", what, upper, range.max);
  return std::string(what);
}

/// Splits at commas. False when an element is empty.
bool append_list(const std::string& text, std::vector<std::string>& list) {
  if (text.empty()) return true;
  std::size_t begin = 0;
  while (true) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    if (begin == end) return false;
    list.push_back(text.substr(begin, end - begin));
    if (end == text.size()) return true;
    begin = end + 1;
  }
}

template <class... Cases>
struct Overload : Cases... {
  using Cases::operator()...;
};
template <class... Cases>
Overload(Cases...) -> Overload<Cases...>;

}  // namespace

std::string nearest_name(std::string_view word, const std::vector<std::string>& names) {
  std::string nearest;
  // In half edits: at equal distance a whole name is nearer than the part behind a dot.
  std::size_t best = 2 * std::clamp<std::size_t>((word.size() + 2) / 3, 1, 3) + 2;
  for (const std::string& name : names) {
    const std::size_t dot = name.rfind('.');
    std::size_t distance = 2 * edit_distance(word, name);
    if (dot != std::string::npos) distance = std::min(distance, 2 * edit_distance(word, name.substr(dot + 1)) + 1);
    if (distance < best) {
      best = distance;
      nearest = name;
    }
  }
  return nearest;
}

OptionTable::OptionTable(std::string usage, std::string summary, std::filesystem::path presets)
    : usage_(std::move(usage)), summary_(std::move(summary)), presets_(std::move(presets)) {}

void OptionTable::section(std::string name, std::string sentence) {
  sections_.push_back({std::move(name), std::move(sentence)});
}

void OptionTable::add(std::string key, std::string& field, std::string help, std::vector<std::string> choices) {
  add_key(std::move(key), Text{&field, std::move(choices)}, std::move(help));
}
void OptionTable::add(std::string key, std::int64_t& field, std::string help, Range<std::int64_t> range) {
  add_key(std::move(key), Integer{&field, range}, std::move(help));
}
void OptionTable::add(std::string key, double& field, std::string help, Range<double> range) {
  add_key(std::move(key), Real{&field, range}, std::move(help));
}
void OptionTable::add(std::string key, bool& field, std::string help) {
  add_key(std::move(key), Flag{&field}, std::move(help));
}
void OptionTable::add(std::string key, std::vector<std::string>& field, std::string help) {
  add_key(std::move(key), List{&field}, std::move(help));
}

void OptionTable::add_key(std::string name, Field field, std::string help) {
  require(find(name) == nullptr, "an option is added once");
  const std::size_t dot = name.find('.');
  const auto is_its_section = [&](const Section& section) { return name.compare(0, dot, section.name) == 0; };
  require(dot == std::string::npos || std::any_of(sections_.begin(), sections_.end(), is_its_section),
          "a section is declared before its options");
  std::string default_text = text_of(field);
  keys_.push_back({std::move(name), std::move(field), std::move(help), std::move(default_text)});
}

void OptionTable::positional(const std::string& key) {
  require(find(key) != nullptr, "a positional option is added first");
  positional_ = key;
}

const OptionTable::Key* OptionTable::find(std::string_view name) const {
  const auto found = std::find_if(keys_.begin(), keys_.end(), [&](const Key& key) { return key.name == name; });
  return found == keys_.end() ? nullptr : &*found;
}

void OptionTable::fail_unknown(const std::string& where, std::string_view key, bool in_file) const {
  const std::string_view dashes = in_file ? "" : "--";
  std::vector<std::string> names;
  for (const Key& known : keys_) {
    if (known.in_section() || !in_file) names.push_back(known.name);
  }
  if (!in_file) names.push_back("help");
  if (!in_file && !sections_.empty()) names.insert(names.end(), {"config", "print-config"});
  const std::string nearest = nearest_name(key, names);
  fail_usage(nearest.empty()
                 ? fmt::format("{}unknown option '{}{}'; --help lists them all", where, dashes, key)
                 : fmt::format("{}unknown option '{}{}'; did you mean '{}{}'?", where, dashes, key, dashes, nearest));
}

std::string OptionTable::text_of(const Field& field) {
  return std::visit(Overload{
                        [](const Text& text) { return *text.field; },
                        [](const Integer& integer) { return fmt::format("{}", *integer.field); },
                        [](const Real& real) { return fmt::format("{}", *real.field); },
                        [](const Flag& flag) { return fmt::format("{}", *flag.field); },
                        [](const List& list) { return fmt::format("{}", fmt::join(*list.field, ",")); },
                    },
                    field);
}

std::string OptionTable::expectation(const Field& field) {
  return std::visit(Overload{
                        [](const Text& text) { return fmt::format("one of {}", fmt::join(text.choices, ", ")); },
                        [](const Integer& integer) { return describe("an integer", integer.range); },
                        [](const Real& real) { return describe("a number", real.range); },
                        [](const Flag&) { return std::string("true or false"); },
                        [](const List&) { return std::string("words separated by single commas"); },
                    },
                    field);
}

void OptionTable::assign(const Key& key, const std::string& value, const std::string& where, Seen& seen) {
  const bool first = seen.insert(key.name).second;
  const bool good =
      std::visit(Overload{
                     [&](const Text& text) {
                       const auto& choices = text.choices;
                       if (!choices.empty() && std::find(choices.begin(), choices.end(), value) == choices.end())
                         return false;
                       *text.field = value;
                       return true;
                     },
                     [&](const Integer& integer) { return parse_number(value, integer.range, *integer.field); },
                     [&](const Real& real) { return parse_number(value, real.range, *real.field); },
                     [&](const Flag& flag) {
                       *flag.field = value == "true";
                       return value == "true" || value == "false";
                     },
                     [&](const List& list) {
                       if (first) list.field->clear();
                       return append_list(value, *list.field);
                     },
                 },
                 key.field);
  if (!good) fail_usage(fmt::format("{}{} is '{}'; expected {}", where, key.name, value, expectation(key.field)));
}

void OptionTable::parse_config(std::string_view text, const std::string& name) {
  Seen seen;
  std::string before;  // The lines so far that set nothing: Boost takes the section from them.
  std::istringstream lines{std::string(text)};
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    const std::string where = fmt::format("{}:{}: ", name, number);
    const std::size_t start = line.find_first_not_of(" \t\r");
    if (start != std::string::npos && line.compare(start, 2, "[]") == 0) fail_usage(where + "a section has a name");
    std::vector<po::option> options;
    try {
      std::istringstream with_section(before + line + "\n");
      options = po::parse_config_file(with_section, po::options_description(), true).options;
    } catch (const po::error&) {
      fail_usage(fmt::format("{}'{}' is neither 'key = value', '[section]' nor a comment", where, line));
    }
    if (options.empty()) before += line + "\n";
    for (const po::option& option : options) {
      const Key* key = find(option.string_key);
      if (key == nullptr) fail_unknown(where, option.string_key, true);
      if (!key->in_section()) fail_usage(fmt::format("{}'{}' is given on the command line only", where, key->name));
      if (seen.contains(key->name) && !std::holds_alternative<List>(key->field))
        fail_usage(fmt::format("{}{} is given a second time", where, key->name));
      assign(*key, option.value.front(), where, seen);
    }
  }
}

void OptionTable::read_config_file(const std::string& name) {
  namespace fs = std::filesystem;
  fs::path path = name;
  if (name.find('/') == std::string::npos && !fs::exists(path)) {
    std::vector<std::string> presets;
    std::error_code absent;
    for (const auto& entry : fs::directory_iterator(presets_, absent)) presets.push_back(entry.path().stem().string());
    const std::string preset = path.extension() == ".cfg" ? path.stem().string() : name;
    if (std::find(presets.begin(), presets.end(), preset) == presets.end()) {
      const std::string nearest = nearest_name(preset, presets);
      const std::string hint = nearest.empty() ? fmt::format("presets lie in '{}'", presets_.string())
                                               : fmt::format("did you mean '{}'?", nearest);
      fail_usage(fmt::format("--config {}: no such file or preset; {}", name, hint));
    }
    path = presets_ / (preset + ".cfg");
  }
  std::ifstream file(path, std::ios::binary);
  if (!file || fs::is_directory(path)) fail_usage(fmt::format("--config {}: cannot read '{}'", name, path.string()));
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  parse_config(text, path.string());
}

void OptionTable::set_values(const std::vector<std::pair<std::string, std::string>>& values, const std::string& source) {
  Seen seen;
  for (const auto& [name, value] : values) {
    const Key* key = find(name);
    if (key == nullptr) fail_unknown(source + ": ", name, true);
    assign(*key, value, source + ": ", seen);
  }
}

std::vector<std::pair<std::string, std::string>> OptionTable::values() const {
  std::vector<std::pair<std::string, std::string>> values;
  for (const Key& key : keys_) {
    if (key.in_section()) values.emplace_back(key.name, text_of(key.field));
  }
  return values;
}

ParseOutcome OptionTable::parse(int argc, const char* const* argv, std::ostream& out) {
  const bool has_config = !sections_.empty();
  po::options_description known;
  known.add_options()("help,h", "");
  if (has_config) known.add_options()("config", po::value<std::string>(), "")("print-config", "");
  for (const Key& key : keys_) {
    auto* value = po::value<std::string>();
    if (std::holds_alternative<Flag>(key.field)) value->implicit_value("true");
    known.add_options()(key.name.c_str(), value, "");
  }
  std::vector<po::option> options;
  try {
    namespace style = po::command_line_style;
    po::command_line_parser parser(std::vector<std::string>(argv, argv + argc));
    parser.options(known).style(style::unix_style & ~style::allow_guessing).allow_unregistered();
    options = parser.run().options;
  } catch (const po::error& error) {
    fail_usage(error.what());
  }

  bool print = false;
  for (const po::option& option : options) {
    if (option.string_key == "help") {
      print_help(out);
      return ParseOutcome::help_printed;
    }
    if (option.unregistered) fail_unknown("", option.string_key.substr(option.string_key.find_first_not_of('-')), false);
    if (option.string_key == "config") read_config_file(option.value.front());
    if (option.string_key == "print-config") print = true;
  }
  Seen seen;
  for (const po::option& option : options) {
    const bool is_word = option.string_key.empty();
    const Key* key = find(is_word ? positional_ : option.string_key);
    if (is_word && (key == nullptr || (seen.contains(key->name) && !std::holds_alternative<List>(key->field))))
      fail_usage(fmt::format("'{}' is one word too many; options begin with --", option.value.front()));
    if (key != nullptr) assign(*key, option.value.empty() ? "true" : option.value.front(), "--", seen);  // A bare flag.
  }
  if (print) print_config(out);
  return print ? ParseOutcome::config_printed : ParseOutcome::run;
}

void OptionTable::print_help(std::ostream& out) const {
  constexpr unsigned kWidth = 120, kHelpWidth = 60;
  const auto described = [](const Key& key) {
    constexpr const char* kKinds[] = {"TEXT", "INTEGER", "NUMBER", "BOOL", "LIST"};
    auto* value = po::value<std::string>()->value_name(kKinds[key.field.index()]);
    if (!key.default_text.empty()) value->default_value(key.default_text);
    const auto* text = std::get_if<Text>(&key.field);
    const std::string choices = text && !text->choices.empty() ? fmt::format(" ({})", fmt::join(text->choices, ", ")) : "";
    return std::make_pair(value, key.help + choices);
  };
  po::options_description bare("Options", kWidth, kHelpWidth);
  if (!sections_.empty()) {
    bare.add_options()("config", po::value<std::string>()->value_name("FILE"),
                       "A .cfg file or the name of a preset; later files and the command line override it.");
    bare.add_options()("print-config", "Print the configuration as a .cfg file and end.");
  }
  bare.add_options()("help,h", "Print this and end.");
  po::options_description all("", kWidth, kHelpWidth);
  for (const Key& key : keys_) {
    if (key.in_section()) continue;
    const auto [value, help] = described(key);
    bare.add_options()(key.name.c_str(), value, help.c_str());
  }
  all.add(bare);
  for (const Section& section : sections_) {
    const std::string_view sentence = std::string_view(section.sentence).substr(0, section.sentence.rfind('.'));
    po::options_description group(fmt::format("[{}] {}", section.name, sentence), kWidth, kHelpWidth);
    for (const Key& key : keys_) {
      if (!key.name.starts_with(section.name + ".")) continue;
      const auto [value, help] = described(key);
      group.add_options()(key.name.c_str(), value, help.c_str());
    }
    all.add(group);
  }
  out << "Usage: " << usage_ << "\n" << summary_ << "\n" << all;
}

void OptionTable::print_config(std::ostream& out) const {
  for (const Section& section : sections_) {
    out << (&section == &sections_.front() ? "" : "\n") << "# " << section.sentence << "\n[" << section.name << "]\n";
    for (const Key& key : keys_) {
      if (!key.name.starts_with(section.name + ".")) continue;
      const std::string text = text_of(key.field);
      const bool trimmed = text.empty() || (!std::isspace(static_cast<unsigned char>(text.front())) &&
                                            !std::isspace(static_cast<unsigned char>(text.back())));
      if (!trimmed || text.find_first_of("#\n") != std::string::npos)
        fail_usage(
            fmt::format("{} is '{}', which no .cfg file can hold (a '#', a line end or a space at an end)", key.name, text));
      out << key.name.substr(section.name.size() + 1) << " = " << text << "\n";
    }
  }
}

}  // namespace dm
