// Text to token ids and back: bytes, or a SentencePiece model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace dm {

/// Stateless for the caller: encode and decode may be called from several threads at once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Number of ids; every id is in [0, vocabulary()).
  virtual std::int64_t vocabulary() const = 0;
  /// The id that a document starts with. encode never gives it, whatever the text contains.
  virtual std::int32_t bos() const = 0;
  /// Appends the ids of `text` (valid UTF-8 without further conditions) to `ids`. Nothing else is added: no BOS, no EOS.
  virtual void encode(std::string_view text, std::vector<std::int32_t>& ids) const = 0;
  /// The text of `ids`, without control tokens. decode(encode(text)) == text for the byte tokenizer and for SentencePiece
  /// models with LLaMA's flags. Throws Error for an id outside the vocabulary.
  virtual std::string decode(std::span<const std::int32_t> ids) const = 0;
  /// Identity of the mapping: "bytes", or the XXH3-128 of the model file in hex.
  virtual const std::string& hash() const = 0;
  /// What was given to make_tokenizer.
  virtual const std::string& name() const = 0;
};

/// `spec` is "bytes" (one id a byte, BOS 256, vocabulary 257) or the path of a SentencePiece model. Throws Error naming the
/// file when it cannot be read, is no model, or has no BOS.
///
/// SentencePiece BPE models with byte fallback, none of whose pieces has a space after another character or a newline beside
/// another character (LLaMA's are such), are encoded word by word through a bounded cache. That is exact: no merge crosses
/// those places. A word of more than 64 KiB (no space or newline in between) is cut there, so that memory stays bounded;
/// only such words may differ from SentencePiece on the whole text. Other models encode whole documents.
std::shared_ptr<const Tokenizer> make_tokenizer(const std::string& spec);

/// Trains a SentencePiece BPE model with LLaMA's flags (identity normalizer, dummy prefix, byte fallback, digits split, unk
/// 0, bos 1, eos 2) on the documents of `files` and writes it to `output`, atomically. Learns from the lines of the first
/// `sample_bytes` bytes of text. The same files give the same model. Throws Error when the text is too small for
/// `vocabulary`.
void train_tokenizer(const std::vector<std::filesystem::path>& files, std::int64_t vocabulary,
                     const std::filesystem::path& output, std::int64_t sample_bytes = 10'000'000);

}  // namespace dm
