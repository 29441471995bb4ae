// Opening, checking and reading checkpoints.
#include "parallel/checkpoint.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <map>
#include <utility>

#include <fmt/format.h>

#include "parallel/checkpoint_directory.h"
#include "parallel/manifest.h"
#include "runtime/file.h"
#include "runtime/hash.h"
#include "runtime/strict_json.h"

namespace dm {
namespace fs = std::filesystem;
namespace {

constexpr std::int64_t kReadBytes = std::int64_t{4} << 20;

bool overlap(const Rectangle& a, const Rectangle& b) {
  return a.row < b.row + b.rows && b.row < a.row + a.rows && a.column < b.column + b.columns &&
         b.column < a.column + a.columns;
}

// Copies the elements that both rectangles have, row by row.
void copy_overlap(const Rectangle& from, const float* source, const Rectangle& to, float* target) {
  const std::int64_t first_row = std::max(from.row, to.row);
  const std::int64_t last_row = std::min(from.row + from.rows, to.row + to.rows);
  const std::int64_t first_column = std::max(from.column, to.column);
  const std::int64_t columns = std::min(from.column + from.columns, to.column + to.columns) - first_column;
  for (std::int64_t row = first_row; row < last_row; ++row) {
    std::memcpy(target + (row - to.row) * to.columns + (first_column - to.column),
                source + (row - from.row) * from.columns + (first_column - from.column),
                static_cast<std::size_t>(columns) * sizeof(float));
  }
}

// In parts: a damaged manifest may speak of more bytes than there is memory.
std::string hash_of(const File& file, std::int64_t offset, std::int64_t bytes) {
  std::vector<std::byte> part(static_cast<std::size_t>(std::min(kReadBytes, bytes)));
  Xxh3 hash;
  while (bytes > 0) {
    const std::int64_t count = std::min(kReadBytes, bytes);
    file.read_at(offset, part.data(), count);
    hash.update(part.data(), count);
    offset += count;
    bytes -= count;
  }
  return hash.hex();
}

}  // namespace

struct Checkpoint::Impl {
  using TensorKey = std::pair<std::string_view, StateKind>;

  fs::path path;
  nlohmann::json json;
  Manifest manifest;
  std::map<TensorKey, std::vector<std::size_t>> pieces_of;  // keys point into the manifest

  File open_file(const StoredFile& file) const { return File::open(path / file.name); }
  void check_size(const StoredFile& file, const File& opened) const;
  void check_header(const StoredFile& file, const File& opened) const;
  void check_data(const StoredPiece& piece, const std::string& found) const;
  std::vector<std::size_t> sources_of(const StatePiece& wanted) const;
  std::vector<Damage> verify(bool data) const;
};

void Checkpoint::Impl::check_size(const StoredFile& file, const File& opened) const {
  const std::int64_t size = opened.size();
  if (size == file.bytes) return;
  std::string cut;
  for (const StoredPiece& piece : manifest.pieces) {
    if (&manifest.files[static_cast<std::size_t>(piece.file)] == &file && piece.offset + piece.bytes() > size) {
      cut = fmt::format("; tensor {} at byte {} is cut", piece.tensor_name(), piece.offset);
      break;
    }
  }
  fail(fmt::format("{}: has {} bytes, not {}{}", opened.path().string(), size, file.bytes, cut));
}

void Checkpoint::Impl::check_header(const StoredFile& file, const File& opened) const {
  if (const std::string found = hash_of(opened, 0, file.header_bytes); found != file.header_xxh3) {
    fail(fmt::format("{}: damaged: the header, {} bytes at byte 0, has hash {}, not {}", opened.path().string(),
                     file.header_bytes, found, file.header_xxh3));
  }
}

void Checkpoint::Impl::check_data(const StoredPiece& piece, const std::string& found) const {
  if (found == piece.xxh3) return;
  const StoredFile& file = manifest.files[static_cast<std::size_t>(piece.file)];
  fail(fmt::format("{}: damaged: tensor {}, {} bytes at byte {}, has hash {}, not {}", (path / file.name).string(),
                   piece.tensor_name(), piece.bytes(), piece.offset, found, piece.xxh3));
}

// The stored pieces that overlap the wanted one; they cover it, because open() has checked that they tile the parameter.
std::vector<std::size_t> Checkpoint::Impl::sources_of(const StatePiece& wanted) const {
  const auto found = pieces_of.find({wanted.parameter, wanted.kind});
  if (found == pieces_of.end()) {
    fail(fmt::format("{}: holds no {} of parameter {}", path.string(), name_of(wanted.kind), wanted.parameter));
  }
  std::vector<std::size_t> sources;
  for (const std::size_t index : found->second) {
    const StoredPiece& stored = manifest.pieces[index];
    if (stored.global_shape != wanted.global_shape) {
      fail(fmt::format("{}: parameter {} has the shape {}, not {}", path.string(), wanted.parameter,
                       to_string(stored.global_shape), to_string(wanted.global_shape)));
    }
    if (overlap(stored.where, wanted.where)) sources.push_back(index);
  }
  return sources;
}

std::vector<Damage> Checkpoint::Impl::verify(bool data) const {
  std::vector<Damage> damage;
  const auto note = [&](const StoredFile& file, const auto& check) {
    try {
      check();
      return true;
    } catch (const Error& error) {
      damage.push_back({file.name, error.what()});
      return false;
    }
  };
  for (std::size_t f = 0; f < manifest.files.size(); ++f) {
    const StoredFile& file = manifest.files[f];
    std::optional<File> opened;
    if (!note(file, [&] { opened.emplace(open_file(file)); })) continue;
    note(file, [&] { check_size(file, *opened); });
    note(file, [&] { check_header(file, *opened); });
    for (const StoredPiece& piece : manifest.pieces) {
      if (data && piece.file == static_cast<int>(f))
        note(file, [&] { check_data(piece, hash_of(*opened, piece.offset, piece.bytes())); });
    }
  }
  return damage;
}

Checkpoint::Checkpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

const fs::path& Checkpoint::path() const {
  return impl_->path;
}
std::int64_t Checkpoint::step() const {
  return impl_->manifest.step;
}
const nlohmann::json& Checkpoint::metadata() const {
  return impl_->manifest.metadata;
}
const nlohmann::json& Checkpoint::manifest() const {
  return impl_->json;
}

Checkpoint Checkpoint::open(const fs::path& path) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  const std::string what = (path / kManifestName).string();
  const std::string text = read_file(what);
  impl->json = parse_strict_json(unseal(text, what), what);
  impl->manifest = manifest_from_json(impl->json, what);
  check_tiling(impl->manifest.pieces, what);
  check_layout(impl->manifest, what);
  for (std::size_t i = 0; i < impl->manifest.pieces.size(); ++i) {
    const StoredPiece& piece = impl->manifest.pieces[i];
    impl->pieces_of[{piece.parameter, piece.kind}].push_back(i);
  }
  return Checkpoint(std::move(impl));
}

void Checkpoint::load(const std::vector<StatePiece>& pieces) const {
  const Manifest& manifest = impl_->manifest;
  // Turned round, from stored piece to those who want it, each stored piece is read and hashed once.
  std::vector<std::vector<const StatePiece*>> readers(manifest.pieces.size());
  for (const StatePiece& piece : pieces) {
    check_piece(piece);
    for (const std::size_t source : impl_->sources_of(piece)) readers[source].push_back(&piece);
  }
  std::optional<File> opened;
  int file_index = -1;
  std::vector<float> stored;
  for (std::size_t i = 0; i < readers.size(); ++i) {
    if (readers[i].empty()) continue;
    const StoredPiece& piece = manifest.pieces[i];
    if (piece.file != file_index) {
      file_index = piece.file;
      const StoredFile& file = manifest.files[static_cast<std::size_t>(file_index)];
      opened.emplace(impl_->open_file(file));
      impl_->check_size(file, *opened);
      impl_->check_header(file, *opened);
    }
    stored.resize(static_cast<std::size_t>(piece.where.numel()));
    opened->read_at(piece.offset, stored.data(), piece.bytes());
    impl_->check_data(piece, xxh3_hex(stored.data(), piece.bytes()));
    for (const StatePiece* reader : readers[i]) {
      copy_overlap(piece.where, stored.data(), reader->where, reader->data.as<float>());
    }
  }
}

std::vector<Damage> Checkpoint::verify() const {
  return impl_->verify(true);
}
std::vector<Damage> Checkpoint::verify_files() const {
  return impl_->verify(false);
}

}  // namespace dm
