// Reads the few protocol buffer fields that are needed (wire format: https://protobuf.dev/programming-guides/encoding).
#include "dataloader/sentencepiece_model.h"

#include <algorithm>

namespace dm {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";

/// Visits the fields of one message in order.
class Fields {
 public:
  explicit Fields(std::string_view message) : rest_(message) {}

  /// Goes to the next field; false at the end or where the message is damaged.
  bool next() {
    std::uint64_t key = 0;
    if (rest_.empty() || !varint(key)) return false;
    number = static_cast<int>(key >> 3);
    switch (key & 7) {
      case 0:
        return varint(value);
      case 1:
        return take(8);
      case 2:
        return varint(value) && take(value);
      case 5:
        return take(4);
      default:
        return damaged();
    }
  }
  bool intact() const { return intact_; }

  int number = 0;
  std::uint64_t value = 0;  ///< Of a varint field.
  std::string_view bytes;   ///< Of any other.

 private:
  bool damaged() {
    intact_ = false;
    return false;
  }
  bool take(std::uint64_t count) {
    if (count > rest_.size()) return damaged();
    bytes = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return true;
  }
  bool varint(std::uint64_t& result) {
    result = 0;
    for (int shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(rest_.front());
      rest_.remove_prefix(1);
      result |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return true;
    }
    return damaged();
  }

  std::string_view rest_;
  bool intact_ = true;
};

bool parse_piece(std::string_view message, SentencePieceModel& model) {
  SentencePieceModel::Piece piece;
  Fields field(message);
  while (field.next()) {
    if (field.number == 1) piece.text = field.bytes;
    if (field.number == 3) piece.type = static_cast<SentencePieceModel::PieceType>(field.value);
  }
  model.pieces.push_back(std::move(piece));
  return field.intact();
}

bool parse_trainer(std::string_view message, SentencePieceModel& model) {
  Fields field(message);
  while (field.next()) {
    if (field.number == 3) model.bpe = field.value == 2;
    if (field.number == 24) model.space_as_suffix = field.value != 0;
    if (field.number == 35) model.byte_fallback = field.value != 0;
  }
  return field.intact();
}

bool parse_normalizer(std::string_view message, SentencePieceModel& model) {
  Fields field(message);
  while (field.next()) {
    if (field.number == 2) model.has_character_map = !field.bytes.empty();
    if (field.number == 3) model.dummy_prefix = field.value != 0;
    if (field.number == 4) model.remove_extra_spaces = field.value != 0;
    if (field.number == 5) model.escape_spaces = field.value != 0;
  }
  return field.intact();
}

/// Whether the piece has a place inside where splits_at_spaces splits.
bool spans_split(std::string_view piece) {
  for (std::size_t at = piece.find(kSpaceMark); at != std::string_view::npos; at = piece.find(kSpaceMark, at + 1)) {
    if (at > 0 && !piece.substr(0, at).ends_with(kSpaceMark)) return true;
  }
  return piece.size() > 1 && piece.find('\n') != std::string_view::npos;
}

}  // namespace

std::optional<SentencePieceModel> SentencePieceModel::parse(std::string_view file) {
  SentencePieceModel model;
  Fields field(file);
  bool intact = true;
  while (intact && field.next()) {
    if (field.number == 1) intact = parse_piece(field.bytes, model);
    if (field.number == 2) intact = parse_trainer(field.bytes, model);
    if (field.number == 3) intact = parse_normalizer(field.bytes, model);
  }
  if (!intact || !field.intact() || model.pieces.empty()) return std::nullopt;
  return model;
}

bool SentencePieceModel::splits_at_spaces() const {
  if (!bpe || !byte_fallback || space_as_suffix || has_character_map || remove_extra_spaces || !escape_spaces) return false;
  return std::none_of(pieces.begin(), pieces.end(), [](const Piece& piece) {
    const bool plain = piece.type != PieceType::user_defined && piece.type != PieceType::unused;
    return !plain || spans_split(piece.text);
  });
}

}  // namespace dm
