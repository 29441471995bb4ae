// Expands file patterns, applies the policy for bad units and the held-out split, and finds the place to resume at.
#include "dataloader/source.h"

#include <glob.h>
#include <unistd.h>

#include <atomic>
#include <utility>

#include <fmt/format.h>
#include <xxhash.h>

#include "dataloader/line_reader.h"
#include "runtime/error.h"

namespace dm {
namespace {

/// Buffers that grew larger for one document are given back after it.
constexpr std::size_t kKeptBytes = 16 << 20;

std::vector<std::filesystem::path> matches_of(const std::string& pattern) {
  glob_t found{};
  const int status = glob(pattern.c_str(), 0, nullptr, &found);
  std::vector<std::filesystem::path> paths(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  globfree(&found);
  if (status == GLOB_NOMATCH) fail(fmt::format("data: no file matches {}", pattern), ExitCode::usage);
  if (status != 0) fail(fmt::format("data: cannot look for files that match {}", pattern), ExitCode::usage);
  return paths;
}

void check_data_file(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    fail(fmt::format("data: {} is not a regular file", path.string()), ExitCode::usage);
  if (access(path.c_str(), R_OK) != 0) fail(fmt::format("data: {} cannot be read", path.string()), ExitCode::usage);
  if (std::filesystem::file_size(path, error) == 0)
    fail(fmt::format("data: {} is empty: no data", path.string()), ExitCode::usage);
}

}  // namespace

OnError parse_on_error(std::string_view name) {
  if (name == "error") return OnError::error;
  if (name == "skip") return OnError::skip;
  fail(fmt::format("on_error is \"{}\"; it must be error or skip", name), ExitCode::usage);
}

std::vector<std::filesystem::path> expand_files(const std::vector<std::string>& patterns) {
  std::vector<std::filesystem::path> files;
  for (const std::string& pattern : patterns) {
    for (std::filesystem::path& path : matches_of(pattern)) {
      check_data_file(path);
      files.push_back(std::move(path));
    }
  }
  return files;
}

struct DocumentSource::Impl {
  Impl(SourceOptions given, const DataState& start_state);

  void open_file();
  void fast_forward();
  void next_file();
  void bad_unit(std::int64_t& counter, const std::string& what, const DataState& unit, std::int64_t frame);
  bool keeps(std::string_view text) const;
  std::optional<Document> take(LineReader::Status status, const DataState& unit, std::int64_t frame);
  const std::string& file_name() const { return names[static_cast<std::size_t>(at.file)]; }

  SourceOptions options;
  std::vector<std::string> names;
  DataState start;
  DataState at;  ///< epoch, file and the counters of the unit to read next; line and offset come from the reader.
  bool whole_pass;
  bool found_document = false;
  bool resuming;  ///< `start` lies inside a document, which must be the next unit.
  bool ended = false;
  std::atomic<bool> stopped = false;
  std::optional<LineReader> reader;
  LineParser parser;
  std::string line;
  std::vector<std::string> skipped;
};

DocumentSource::Impl::Impl(SourceOptions given, const DataState& start_state)
    : options(std::move(given)), start(start_state), resuming(start_state.token > 0) {
  if (options.files.empty()) fail("no data: the list of files is empty", ExitCode::usage);
  if (!(options.holdout >= 0 && options.holdout < 1))
    fail(fmt::format("holdout is {}; it must be at least 0 and below 1", options.holdout), ExitCode::usage);
  if (options.split == Split::valid && options.holdout == 0)
    fail("there is no held-out data: holdout is 0", ExitCode::usage);
  for (const auto& file : options.files) names.push_back(file.string());
  if (start.file >= static_cast<std::int64_t>(names.size()))
    fail(fmt::format("the data state is in file {} (counted from 0) of {}: the files differ from those it was made with",
                     start.file, names.size()));
  at = start;
  at.sequences = at.tokens = at.token = 0;
  whole_pass = start.file == 0 && start.line == 0 && start.offset == 0;
}

void DocumentSource::Impl::open_file() {
  reader.emplace(options.files[static_cast<std::size_t>(at.file)]);
  if (at.epoch == start.epoch && at.file == start.file) fast_forward();
}

/// Passes the units before `start` without parsing; they are in its counters already.
void DocumentSource::Impl::fast_forward() {
  while (reader->offset() < start.offset || reader->line() < start.line) {
    if (stopped) return;
    const std::int64_t frame = reader->frame();
    DataState unit = at;
    unit.line = reader->line();
    unit.offset = reader->offset();
    const LineReader::Status status = reader->next(line);
    if (status == LineReader::Status::end) break;
    if (status == LineReader::Status::damaged && options.on_error == OnError::error) {
      bad_unit(at.skipped_frames, reader->damage(), unit, frame);
    }
  }
  if (reader->offset() != start.offset || reader->line() != start.line)
    fail(
        fmt::format("{}: no line {} begins at byte {}, where the data state resumes: the file differs from the one the "
                    "state was made with",
                    file_name(), start.line + 1, start.offset));
}

void DocumentSource::Impl::next_file() {
  reader.reset();
  if (++at.file < static_cast<std::int64_t>(names.size())) return;
  if (whole_pass && !found_document)
    fail(fmt::format("no data: there is no document to use in {}{}", names.front(),
                     names.size() > 1 ? fmt::format(" and {} more files", names.size() - 1) : ""));
  whole_pass = true;
  found_document = false;
  at.file = 0;
  ++at.epoch;
  ended = !options.repeat;
}

void DocumentSource::Impl::bad_unit(std::int64_t& counter, const std::string& what, const DataState& unit,
                                    std::int64_t frame) {
  const std::string place =
      fmt::format("{}{}, line {} (byte {}{})", file_name(), frame > 0 ? fmt::format(", frame {}", frame) : "", unit.line + 1,
                  unit.offset, frame > 0 ? " of the decompressed stream" : "");
  if (options.on_error == OnError::error) fail(fmt::format("{}: {}; repair the file or set on_error to skip", place, what));
  ++counter;
  skipped.push_back(fmt::format("{}: {}", place, what));
}

bool DocumentSource::Impl::keeps(std::string_view text) const {
  if (options.split == Split::all) return true;
  const bool held_out = static_cast<double>(XXH3_64bits(text.data(), text.size())) * 0x1p-64 < options.holdout;
  return held_out == (options.split == Split::valid);
}

/// The document of the unit just read, if it is one to use.
std::optional<Document> DocumentSource::Impl::take(LineReader::Status status, const DataState& unit, std::int64_t frame) {
  if (status == LineReader::Status::damaged) {
    bad_unit(at.skipped_frames, reader->damage(), unit, frame);
    return std::nullopt;
  }
  if (status == LineReader::Status::too_long) {
    bad_unit(at.skipped_lines, fmt::format("the line is longer than {} MiB", kMaxLineBytes >> 20), unit, frame);
    return std::nullopt;
  }
  if (line.empty() || line == "\r") return std::nullopt;
  Document document;
  const std::string error = parser.parse(line, document.text);
  if (line.capacity() > kKeptBytes) {
    line = {};
    parser = {};
  }
  if (!error.empty()) {
    bad_unit(at.skipped_lines, error, unit, frame);
    return std::nullopt;
  }
  if (!keeps(document.text)) return std::nullopt;
  document.position = unit;
  document.skipped = std::exchange(skipped, {});
  return document;
}

DocumentSource::DocumentSource(SourceOptions options, const DataState& start)
    : impl_(std::make_unique<Impl>(std::move(options), start)) {}

DocumentSource::~DocumentSource() = default;

void DocumentSource::stop() {
  impl_->stopped = true;
}

std::optional<Document> DocumentSource::next() {
  Impl& impl = *impl_;
  while (!impl.ended && !impl.stopped) {
    if (!impl.reader) impl.open_file();
    DataState unit = impl.at;
    unit.line = impl.reader->line();
    unit.offset = impl.reader->offset();
    const std::int64_t frame = impl.reader->frame();
    const LineReader::Status status = impl.reader->next(impl.line);
    std::optional<Document> document;
    if (status == LineReader::Status::end) {
      impl.next_file();
    } else {
      document = impl.take(status, unit, frame);
    }
    if (std::exchange(impl.resuming, false) && !document && !impl.stopped)
      fail(
          fmt::format("{}: line {} is no document to use, where the data state resumes inside one: files or options differ "
                      "from those the state was made with",
                      impl.names[static_cast<std::size_t>(unit.file)], unit.line + 1));
    if (document) {
      impl.found_document = true;
      return document;
    }
  }
  return std::nullopt;
}

}  // namespace dm
