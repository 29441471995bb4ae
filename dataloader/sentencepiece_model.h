// The facts of a SentencePiece model file that its library does not tell.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace dm {

/// Fields of sentencepiece_model.proto with its numbers and defaults.
struct SentencePieceModel {
  enum class PieceType : std::uint8_t { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };
  struct Piece {
    std::string text;
    PieceType type = PieceType::normal;
  };

  std::vector<Piece> pieces;
  bool bpe = false;
  bool byte_fallback = false;
  bool space_as_suffix = false;
  bool has_character_map = false;  ///< The normalizer is not the identity.
  bool dummy_prefix = true;        ///< A space is put before every text.
  bool remove_extra_spaces = true;
  bool escape_spaces = true;

  /// Nothing when `file` is no protocol buffer message.
  static std::optional<SentencePieceModel> parse(std::string_view file);

  /// Whether encoding the parts of a text between two characters, of which the second is a space and the first is none, or
  /// one is a newline, gives the ids of the whole text: a BPE model without normalization, whose unknown characters become
  /// bytes, and no piece of which has such a place inside.
  bool splits_at_spaces() const;
};

}  // namespace dm
