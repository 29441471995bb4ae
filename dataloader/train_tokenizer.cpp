// Trains a SentencePiece model on documents that stream from the files.
#include <exception>
#include <string>
#include <unordered_map>
#include <utility>

#include <fmt/format.h>
#include <sentencepiece_trainer.h>

#include "dataloader/source.h"
#include "dataloader/tokenizer.h"
#include "runtime/error.h"
#include "runtime/file.h"

namespace dm {
namespace {

/// The trainer ignores longer sentences.
constexpr std::size_t kMaxSentence = 4096;

/// Lines of the documents, long ones in pieces, until each file gave its share of the sample. Exceptions must not cross the
/// library: they wait in `error`.
class Sentences final : public sentencepiece::SentenceIterator {
 public:
  Sentences(const std::vector<std::filesystem::path>& files, std::int64_t bytes)
      : files_(files), share_(bytes / static_cast<std::int64_t>(std::max<std::size_t>(files.size(), 1))) {
    Next();
  }

  bool done() const override { return done_; }
  const std::string& value() const override { return sentence_; }
  sentencepiece::util::Status status() const override {
    if (!error) return {};
    return {sentencepiece::util::StatusCode::kAborted, "the text cannot be read"};
  }
  void Next() override {
    try {
      done_ = !advance();
    } catch (...) {
      error = std::current_exception();
      done_ = true;
    }
  }

  std::exception_ptr error;

 private:
  bool advance() {
    do {
      if (rest_.empty() && !next_document()) return false;
      const std::size_t newline = rest_.find('\n');
      std::size_t count = std::min(newline, rest_.size());
      const bool whole = count <= kMaxSentence;
      if (!whole) {
        count = kMaxSentence;
        while ((static_cast<unsigned char>(rest_[count]) & 0xC0) == 0x80) --count;
      }
      sentence_ = rest_.substr(0, count);
      rest_.remove_prefix(count + (whole && newline != std::string_view::npos));
      left_ -= static_cast<std::int64_t>(count);
      if (left_ <= 0) rest_ = {};
    } while (sentence_.empty());
    return true;
  }

  bool next_document() {
    while (true) {
      if (source_ && left_ > 0) {
        if (auto document = source_->next()) {
          text_ = std::move(document->text);
          rest_ = text_;
          if (!rest_.empty()) return true;
          continue;
        }
      }
      if (file_ == files_.size()) return false;
      source_ = std::make_unique<DocumentSource>(SourceOptions{.files = {files_[file_++]}}, DataState{});
      left_ = share_;
    }
  }

  std::vector<std::filesystem::path> files_;
  std::int64_t share_;
  std::size_t file_ = 0;
  std::unique_ptr<DocumentSource> source_;
  std::int64_t left_ = 0;  ///< Bytes to take from the current file.
  std::string text_;
  std::string_view rest_;
  std::string sentence_;
  bool done_ = false;
};

}  // namespace

void train_tokenizer(const std::vector<std::filesystem::path>& files, std::int64_t vocabulary,
                     const std::filesystem::path& output, std::int64_t sample_bytes) {
  const std::unordered_map<std::string, std::string> flags = {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(vocabulary)},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "true"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"byte_fallback", "true"},
      {"split_digits", "true"},
      {"character_coverage", "0.99995"},
      {"unk_id", "0"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"pad_id", "-1"},
      {"unk_surface", " \xE2\x81\x87 "},
      {"num_threads", "1"},
      {"minloglevel", "2"},
  };
  Sentences sentences(files, sample_bytes);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(flags, &sentences, &model);
  if (sentences.error) std::rethrow_exception(sentences.error);
  if (!status.ok())
    fail(fmt::format("cannot train a tokenizer of {} pieces on {} bytes of text: {}; use a smaller vocabulary or more text",
                     vocabulary, sample_bytes, status.message()),
         ExitCode::usage);
  std::filesystem::path partial = output;
  partial += ".partial";
  write_file(partial, model);
  rename_path(partial, output);
}

}  // namespace dm
