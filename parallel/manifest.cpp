// The manifest as JSON, and the checks that make it trustworthy.
#include "parallel/manifest.h"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include <fmt/format.h>

#include "runtime/hash.h"

namespace dm {
namespace {

using nlohmann::json;

constexpr std::string_view kFormat = "densemamba-checkpoint";
constexpr std::size_t kHashDigits = 32;
// Far above any real size, and small enough that sums and the four bytes an element never overflow.
constexpr std::int64_t kMaxNumber = std::int64_t{1} << 53;

// One object of the manifest and how to name it in an error.
class Reader {
 public:
  Reader(const json& object, std::string what) : object_(object), what_(std::move(what)) {
    if (!object_.is_object()) fail(what_ + " is not an object");
  }

  const json& at(std::string_view key) const {
    const auto found = object_.find(key);
    if (found == object_.end()) fail(fmt::format("{} has no {}", what_, key));
    return *found;
  }
  std::int64_t number(std::string_view key) const { return number(at(key), key); }
  std::int64_t number(const json& value, std::string_view key) const {
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() > static_cast<std::uint64_t>(kMaxNumber)) {
      fail(fmt::format("{}: {} is not a count", what_, key));
    }
    return value.get<std::int64_t>();
  }
  std::string text(std::string_view key) const {
    const json& value = at(key);
    if (!value.is_string()) fail(fmt::format("{}: {} is not a string", what_, key));
    return value.get<std::string>();
  }
  std::string hash(std::string_view key) const {
    std::string value = text(key);
    if (value.size() != kHashDigits) fail(fmt::format("{}: {} is not a hash", what_, key));
    return value;
  }
  const json& array(std::string_view key) const {
    const json& value = at(key);
    if (!value.is_array()) fail(fmt::format("{}: {} is not an array", what_, key));
    return value;
  }
  const std::string& what() const { return what_; }

 private:
  const json& object_;
  std::string what_;
};

constexpr StateKind kKinds[] = {StateKind::value, StateKind::first_moment, StateKind::second_moment};

StateKind read_kind(const Reader& reader) {
  const std::string name = reader.text("kind");
  const auto* found = std::find_if(std::begin(kKinds), std::end(kKinds), [&](StateKind k) { return name_of(k) == name; });
  if (found == std::end(kKinds)) fail(fmt::format("{}: unknown kind {}", reader.what(), name));
  return *found;
}

Shape read_shape(const Reader& reader) {
  const json& extents = reader.array("shape");
  if (extents.empty() || extents.size() > Shape::kMaxRank) fail(reader.what() + ": shape has no or more than four axes");
  Shape shape;
  std::int64_t numel = 1;
  for (const json& extent : extents) {
    shape.push_back(reader.number(extent, "an extent"));
    if (shape[-1] == 0 || __builtin_mul_overflow(numel, shape[-1], &numel) || numel > kMaxNumber) {
      fail(fmt::format("{}: shape {} is no parameter's", reader.what(), extents.dump()));
    }
  }
  return shape;
}

StoredFile read_file_entry(const Reader& reader) {
  StoredFile file{reader.text("name"), reader.number("bytes"), reader.number("header_bytes"), reader.hash("header_xxh3")};
  const std::filesystem::path name(file.name);
  if (name.empty() || name.filename() != name || name == "." || name == "..") {
    fail(fmt::format("{}: \"{}\" is not the name of a file in the checkpoint", reader.what(), file.name));
  }
  return file;
}

StoredPiece read_piece(const Reader& reader, std::size_t files) {
  StoredPiece piece;
  piece.parameter = reader.text("parameter");
  piece.kind = read_kind(reader);
  piece.global_shape = read_shape(reader);
  piece.where = {reader.number("row"), reader.number("column"), reader.number("rows"), reader.number("columns")};
  check_rectangle(piece.parameter, piece.global_shape, piece.where);
  const std::int64_t file = reader.number("file");
  if (file >= static_cast<std::int64_t>(files)) fail(fmt::format("{}: there is no file {}", reader.what(), file));
  piece.file = static_cast<int>(file);
  piece.offset = reader.number("offset");
  if (reader.number("bytes") != piece.bytes()) fail(fmt::format("{}: bytes is not rows x columns x 4", reader.what()));
  piece.xxh3 = reader.hash("xxh3");
  return piece;
}

// Pieces of one parameter and kind, sorted by first row.
void check_tiles(std::vector<const StoredPiece*> pieces, std::string_view what) {
  const StoredPiece& first = *pieces.front();
  const std::string tensor = fmt::format("{}: parameter {} ({})", what, first.parameter, name_of(first.kind));
  std::sort(pieces.begin(), pieces.end(), [](const StoredPiece* a, const StoredPiece* b) {
    return std::tie(a->where.row, a->where.column) < std::tie(b->where.row, b->where.column);
  });
  std::vector<const Rectangle*> reaching;  // earlier rectangles that reach the current row
  std::int64_t covered = 0;
  for (const StoredPiece* piece : pieces) {
    const Rectangle& here = piece->where;
    if (piece->global_shape != first.global_shape) {
      fail(fmt::format("{} has two shapes, {} and {}", tensor, to_string(first.global_shape),
                       to_string(piece->global_shape)));
    }
    std::erase_if(reaching, [&](const Rectangle* r) { return r->row + r->rows <= here.row; });
    for (const Rectangle* r : reaching) {
      if (here.column < r->column + r->columns && r->column < here.column + here.columns) {
        fail(fmt::format("{}: row {}, column {} is stored twice", tensor, here.row, std::max(here.column, r->column)));
      }
    }
    reaching.push_back(&here);
    covered += here.numel();
  }
  if (covered != first.global_shape.numel()) {
    fail(fmt::format("{}: {} of its {} elements are stored by nobody", tensor, first.global_shape.numel() - covered,
                     first.global_shape.numel()));
  }
}

constexpr std::string_view kSealBegin = "{\"hash\":\"";
constexpr std::string_view kSealMiddle = "\",\"body\":";
constexpr std::string_view kSealEnd = "}\n";

}  // namespace

std::string_view name_of(StateKind kind) {
  switch (kind) {
    case StateKind::value:
      return "value";
    case StateKind::first_moment:
      return "first_moment";
    case StateKind::second_moment:
      return "second_moment";
  }
  return "?";
}

std::string StoredPiece::tensor_name() const {
  return fmt::format("{}/{}/{},{}", parameter, name_of(kind), where.row, where.column);
}

void check_rectangle(const std::string& parameter, const Shape& global_shape, const Rectangle& where) {
  const Shape whole = as_matrix(global_shape);
  const auto inside = [](std::int64_t begin, std::int64_t count, std::int64_t extent) {
    return begin >= 0 && count >= 1 && begin <= extent && count <= extent - begin;
  };
  if (!inside(where.row, where.rows, whole[0]) || !inside(where.column, where.columns, whole[1])) {
    fail(fmt::format("parameter {}: rows {} + {}, columns {} + {} lie outside its shape {}", parameter, where.row,
                     where.rows, where.column, where.columns, to_string(global_shape)));
  }
}

void check_piece(const StatePiece& piece) {
  check_rectangle(piece.parameter, piece.global_shape, piece.where);
  if (piece.data.dtype() != DType::f32 || piece.data.device() != Device::cpu() ||
      piece.data.numel() != piece.where.numel()) {
    fail(fmt::format("parameter {} ({}): a piece of {} elements has as data {} {} on {}", piece.parameter,
                     name_of(piece.kind), piece.where.numel(), name_of(piece.data.dtype()), to_string(piece.data.shape()),
                     name_of(piece.data.device())));
  }
}

nlohmann::json to_json(const Manifest& manifest) {
  json files = json::array();
  for (const StoredFile& file : manifest.files) {
    files.push_back({{"name", file.name},
                     {"bytes", file.bytes},
                     {"header_bytes", file.header_bytes},
                     {"header_xxh3", file.header_xxh3}});
  }
  json pieces = json::array();
  for (const StoredPiece& piece : manifest.pieces) {
    json shape = json::array();
    for (int axis = 0; axis < piece.global_shape.rank(); ++axis) shape.push_back(piece.global_shape[axis]);
    pieces.push_back({{"parameter", piece.parameter},
                      {"kind", name_of(piece.kind)},
                      {"shape", std::move(shape)},
                      {"row", piece.where.row},
                      {"column", piece.where.column},
                      {"rows", piece.where.rows},
                      {"columns", piece.where.columns},
                      {"file", piece.file},
                      {"offset", piece.offset},
                      {"bytes", piece.bytes()},
                      {"xxh3", piece.xxh3}});
  }
  return {{"format", kFormat},         {"version", kCheckpointVersion}, {"step", manifest.step},
          {"files", std::move(files)}, {"pieces", std::move(pieces)},   {"metadata", manifest.metadata}};
}

Manifest manifest_from_json(const nlohmann::json& value, std::string_view what) {
  const Reader reader(value, std::string(what));
  if (reader.text("format") != kFormat) fail(fmt::format("{}: not the manifest of a checkpoint", what));
  if (const std::int64_t version = reader.number("version"); version != kCheckpointVersion) {
    fail(fmt::format("{}: format version {} is not {}; read it with the program that wrote it", what, version,
                     kCheckpointVersion));
  }
  Manifest manifest;
  manifest.step = reader.number("step");
  for (const json& file : reader.array("files")) {
    manifest.files.push_back(read_file_entry(Reader(file, fmt::format("{}: file {}", what, manifest.files.size()))));
  }
  for (const json& piece : reader.array("pieces")) {
    const std::string name = fmt::format("{}: piece {}", what, manifest.pieces.size());
    manifest.pieces.push_back(read_piece(Reader(piece, name), manifest.files.size()));
  }
  manifest.metadata = reader.at("metadata");
  if (!manifest.metadata.is_object()) fail(fmt::format("{}: metadata is not an object", what));
  return manifest;
}

void check_tiling(const std::vector<StoredPiece>& pieces, std::string_view what) {
  std::map<std::string_view, std::map<StateKind, std::vector<const StoredPiece*>>> parameters;
  std::set<StateKind> kinds;
  for (const StoredPiece& piece : pieces) {
    parameters[piece.parameter][piece.kind].push_back(&piece);
    kinds.insert(piece.kind);
  }
  for (const auto& [parameter, tensors] : parameters) {
    for (const StateKind kind : kinds) {
      const auto tiles = tensors.find(kind);
      if (tiles == tensors.end()) {
        fail(fmt::format("{}: parameter {} ({}) is stored by nobody", what, parameter, name_of(kind)));
      }
      check_tiles(tiles->second, what);
    }
  }
}

void check_layout(const Manifest& manifest, std::string_view what) {
  std::vector<std::vector<const StoredPiece*>> by_file(manifest.files.size());
  for (const StoredPiece& piece : manifest.pieces) by_file[static_cast<std::size_t>(piece.file)].push_back(&piece);
  for (std::size_t f = 0; f < by_file.size(); ++f) {
    std::sort(by_file[f].begin(), by_file[f].end(), [](const auto* a, const auto* b) { return a->offset < b->offset; });
    std::int64_t at = manifest.files[f].header_bytes;
    for (const StoredPiece* piece : by_file[f]) {
      if (piece->offset != at) {
        fail(fmt::format("{}: {} does not begin at byte {} of {}", what, piece->tensor_name(), at, manifest.files[f].name));
      }
      at += piece->bytes();
    }
    if (at != manifest.files[f].bytes) {
      fail(fmt::format("{}: the pieces of {} end at byte {} of {}", what, manifest.files[f].name, at,
                       manifest.files[f].bytes));
    }
  }
}

std::string seal(std::string_view body) {
  return fmt::format("{}{}{}{}{}", kSealBegin, xxh3_hex(body), kSealMiddle, body, kSealEnd);
}

std::string_view unseal(std::string_view text, std::string_view what) {
  const std::size_t body_at = kSealBegin.size() + kHashDigits + kSealMiddle.size();
  if (text.size() < body_at + kSealEnd.size() || !text.starts_with(kSealBegin) ||
      text.substr(kSealBegin.size() + kHashDigits, kSealMiddle.size()) != kSealMiddle || !text.ends_with(kSealEnd)) {
    fail(
        fmt::format("{}: {} bytes that do not begin and end as they were written: truncated or damaged", what, text.size()));
  }
  const std::string_view hash = text.substr(kSealBegin.size(), kHashDigits);
  const std::string_view body = text.substr(body_at, text.size() - body_at - kSealEnd.size());
  if (const std::string found = xxh3_hex(body); found != hash) {
    fail(
        fmt::format("{}: damaged: the {} bytes from byte {} have hash {}, not {}", what, body.size(), body_at, found, hash));
  }
  return body;
}

}  // namespace dm
