// The manifest of a checkpoint: which bytes of which file hold which rectangle of which tensor, and the hash of each.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "parallel/checkpoint.h"

namespace dm {

/// A rectangle of one parameter's state as it lies on disk: f32, row-major.
struct StoredPiece {
  std::string parameter;
  StateKind kind = StateKind::value;
  Shape global_shape;
  Rectangle where;
  int file = 0;             ///< Index into Manifest::files.
  std::int64_t offset = 0;  ///< From the start of the file, in bytes.
  std::string xxh3;         ///< XXH3-128 of its bytes.

  std::int64_t bytes() const { return where.numel() * 4; }
  /// Its name inside the safetensors file: "<parameter>/<kind>/<row>,<column>".
  std::string tensor_name() const;
};

struct StoredFile {
  std::string name;  ///< Relative to the checkpoint.
  std::int64_t bytes = 0;
  std::int64_t header_bytes = 0;  ///< The pieces fill the rest.
  std::string header_xxh3;        ///< XXH3-128 of the header.
};

struct Manifest {
  std::int64_t step = 0;
  std::vector<StoredFile> files;
  std::vector<StoredPiece> pieces;
  nlohmann::json metadata = nlohmann::json::object();
};

/// Version of the format written and read here; another one is refused by name.
inline constexpr int kCheckpointVersion = 1;

nlohmann::json to_json(const Manifest& manifest);
/// Checks each field by itself: types, ranges, kinds, rectangles inside their shapes, files that exist in the list. Throws
/// Error that begins with `what`.
Manifest manifest_from_json(const nlohmann::json& json, std::string_view what);

/// Throws Error naming the parameter unless the rectangle has elements and lies inside the shape.
void check_rectangle(const std::string& parameter, const Shape& global_shape, const Rectangle& where);
/// Throws Error naming the parameter unless the piece is such a rectangle with f32 host data of its size.
void check_piece(const StatePiece& piece);
/// Throws Error that begins with `what` and names the parameter unless, for every parameter and every kind that occurs, the
/// rectangles cover the global shape and no element lies in two of them. Only a parameter of which nobody has anything
/// cannot be missed here; load() misses it.
void check_tiling(const std::vector<StoredPiece>& pieces, std::string_view what);
/// Throws Error that begins with `what` unless in every file header and pieces follow one another without gap up to the
/// end, so that every byte is under some hash.
void check_layout(const Manifest& manifest, std::string_view what);

/// A text under its own hash, in a fixed layout in which every byte is either given or hashed, so that any flipped bit and
/// any truncation is found: {"hash":"<XXH3-128 of body>","body":<body>} and a newline.
std::string seal(std::string_view body);
/// The body; throws Error that begins with `what` when a byte is not as seal() wrote it.
std::string_view unseal(std::string_view text, std::string_view what);

}  // namespace dm
