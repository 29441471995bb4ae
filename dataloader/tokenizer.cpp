// The byte tokenizer, SentencePiece models with a fast path through a word cache, and their factory.
#include "dataloader/tokenizer.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <utility>

#include <fmt/format.h>
#include <sentencepiece_processor.h>

#include "dataloader/sentencepiece_model.h"
#include "dataloader/word_cache.h"
#include "runtime/error.h"
#include "runtime/file.h"
#include "runtime/hash.h"

namespace dm {
namespace {

/// The name and the hash of the byte tokenizer.
const std::string kBytes = "bytes";

constexpr std::size_t kMaxWordBytes = 64 << 10;

void check_id(std::int32_t id, const Tokenizer& tokenizer) {
  if (id < 0 || id >= tokenizer.vocabulary())
    fail(fmt::format("cannot decode id {}: tokenizer {} has {} ids", id, tokenizer.name(), tokenizer.vocabulary()));
}

class ByteTokenizer final : public Tokenizer {
 public:
  std::int64_t vocabulary() const override { return 257; }
  std::int32_t bos() const override { return 256; }
  void encode(std::string_view text, std::vector<std::int32_t>& ids) const override {
    const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
    ids.insert(ids.end(), bytes, bytes + text.size());
  }
  std::string decode(std::span<const std::int32_t> ids) const override {
    std::string text;
    for (const std::int32_t id : ids) {
      check_id(id, *this);
      if (id < 256) text.push_back(static_cast<char>(id));
    }
    return text;
  }
  const std::string& hash() const override { return kBytes; }
  const std::string& name() const override { return kBytes; }
};

class SentencePieceTokenizer final : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const std::string& file);

  std::int64_t vocabulary() const override { return processor_.GetPieceSize(); }
  std::int32_t bos() const override { return processor_.bos_id(); }
  void encode(std::string_view text, std::vector<std::int32_t>& ids) const override;
  std::string decode(std::span<const std::int32_t> ids) const override;
  const std::string& hash() const override { return hash_; }
  const std::string& name() const override { return name_; }

 private:
  /// What one encode call needs to itself; kept for the next one, so there are as many as threads at once.
  struct Scratch {
    WordCache cache;
    std::string word;
    std::vector<int> ids;
  };

  void encode_whole(std::string_view text, std::vector<int>& ids) const;
  void encode_words(std::string_view text, Scratch& scratch, std::vector<std::int32_t>& ids) const;
  void encode_word(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const;
  std::unique_ptr<Scratch> borrow() const;

  std::string name_;
  std::string hash_;
  sentencepiece::SentencePieceProcessor processor_;
  bool by_words_ = false;
  bool dummy_prefix_ = false;
  std::vector<int> newline_;  ///< Ids of a newline.
  std::size_t prefix_ = 0;    ///< Number of ids of the dummy prefix.
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Scratch>> idle_;
};

SentencePieceTokenizer::SentencePieceTokenizer(const std::string& file) : name_(file) {
  const std::string bytes = read_file(file);
  const auto model = SentencePieceModel::parse(bytes);
  if (!model || !processor_.LoadFromSerializedProto(bytes).ok())
    fail(fmt::format("tokenizer {}: not a SentencePiece model", file), ExitCode::usage);
  if (processor_.bos_id() < 0)
    fail(fmt::format("tokenizer {}: the model has no BOS piece, with which every document begins", file), ExitCode::usage);
  hash_ = xxh3_hex(bytes);
  by_words_ = model->splits_at_spaces();
  dummy_prefix_ = model->dummy_prefix;
  std::vector<int> two_newlines;
  encode_whole("\n", newline_);
  encode_whole("\n\n", two_newlines);
  prefix_ = 2 * newline_.size() - two_newlines.size();
  newline_.erase(newline_.begin(), newline_.begin() + static_cast<std::ptrdiff_t>(prefix_));
}

void SentencePieceTokenizer::encode_whole(std::string_view text, std::vector<int>& ids) const {
  const auto status = processor_.Encode(text, &ids);
  if (!status.ok()) fail(fmt::format("tokenizer {}: {}", name_, status.message()));
}

void SentencePieceTokenizer::encode(std::string_view text, std::vector<std::int32_t>& ids) const {
  std::unique_ptr<Scratch> scratch = borrow();
  if (by_words_) {
    encode_words(text, *scratch, ids);
  } else {
    encode_whole(text, scratch->ids);
    ids.insert(ids.end(), scratch->ids.begin(), scratch->ids.end());
  }
  const std::lock_guard lock(mutex_);
  idle_.push_back(std::move(scratch));
}

std::unique_ptr<SentencePieceTokenizer::Scratch> SentencePieceTokenizer::borrow() const {
  const std::lock_guard lock(mutex_);
  if (idle_.empty()) return std::make_unique<Scratch>();
  std::unique_ptr<Scratch> scratch = std::move(idle_.back());
  idle_.pop_back();
  return scratch;
}

/// The end of the word that begins at `begin`: the next newline, the next space that follows no space, or a cut.
std::size_t word_end(std::string_view text, std::size_t begin) {
  constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // means in a text what a space means
  const std::size_t limit = std::min(text.size(), begin + kMaxWordBytes);
  std::size_t at = begin;
  while (true) {
    while (at < limit && text[at] == ' ') ++at;
    while (at < limit && text[at] != ' ' && text[at] != '\n') ++at;
    if (at == limit || text[at] == '\n' || !text.substr(begin, at - begin).ends_with(kSpaceMark)) break;
  }
  if (at == text.size() || at < limit) return at;
  const auto inside_character = [&] { return (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80; };
  for (int bytes = 0; bytes < 3 && inside_character(); ++bytes) --at;
  return at;
}

void SentencePieceTokenizer::encode_words(std::string_view text, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  if (text.empty()) return;
  std::size_t at = 0;
  if (dummy_prefix_) {
    at = word_end(text, 0);
    encode_word(std::string(1, ' ').append(text.substr(0, at)), scratch, ids);
  }
  while (at < text.size()) {
    if (text[at] == '\n') {
      ids.insert(ids.end(), newline_.begin(), newline_.end());
      ++at;
      continue;
    }
    const std::size_t end = word_end(text, at);
    encode_word(text.substr(at, end - at), scratch, ids);
    at = end;
  }
}

/// The library begins every text with the dummy prefix, so the word goes behind a newline, whose ids are taken off.
void SentencePieceTokenizer::encode_word(std::string_view word, Scratch& scratch, std::vector<std::int32_t>& ids) const {
  if (scratch.cache.find(word, ids)) return;
  scratch.word.assign(1, '\n').append(word);
  encode_whole(scratch.word, scratch.ids);
  const auto found = std::span(scratch.ids).subspan(prefix_ + newline_.size());
  ids.insert(ids.end(), found.begin(), found.end());
  scratch.cache.put(word, found);
}

std::string SentencePieceTokenizer::decode(std::span<const std::int32_t> ids) const {
  for (const std::int32_t id : ids) check_id(id, *this);
  std::string text;
  const auto status = processor_.Decode(std::vector<int>(ids.begin(), ids.end()), &text);
  if (!status.ok()) fail(fmt::format("tokenizer {}: {}", name_, status.message()));
  return text;
}

}  // namespace

std::shared_ptr<const Tokenizer> make_tokenizer(const std::string& spec) {
  if (spec == kBytes) return std::make_shared<ByteTokenizer>();
  return std::make_shared<SentencePieceTokenizer>(spec);
}

}  // namespace dm
