// Tokenizers: ids and text round trip, the word cache against SentencePiece itself, control tokens in text, training.
#include "dataloader/tokenizer.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <atomic>
#include <set>
#include <thread>

#include <gtest/gtest.h>

#include "dataloader/sentencepiece_model.h"
#include "runtime/error.h"
#include "runtime/file.h"
#include "tests/dataloader/small_data.h"
#include "tests/testing/mutate.h"
#include "tests/testing/temporary_directory.h"

namespace dm {
namespace {

std::vector<std::int32_t> encode(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<std::int32_t> ids;
  tokenizer.encode(text, ids);
  return ids;
}

TEST(ByteTokenizer, GivesBytes) {
  const auto tokenizer = make_tokenizer("bytes");
  EXPECT_EQ(tokenizer->vocabulary(), 257);
  EXPECT_EQ(tokenizer->bos(), 256);
  EXPECT_EQ(tokenizer->hash(), "bytes");
  EXPECT_EQ(encode(*tokenizer, std::string("a\0\xc3\xa9", 4)), (std::vector<std::int32_t>{97, 0, 0xc3, 0xa9}));
  EXPECT_EQ(tokenizer->decode(std::vector<std::int32_t>{256, 104, 105}), "hi");
  EXPECT_THROW(tokenizer->decode(std::vector<std::int32_t>{257}), Error);
  EXPECT_THROW(tokenizer->decode(std::vector<std::int32_t>{-1}), Error);
}

/// One small model, trained once for all tests of this file, and the library's own view of it.
class SentencePiece : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    directory_ = std::make_unique<TemporaryDirectory>();
    const auto data = put_file(directory_->path(), "train.jsonl.zst", zstd_frame(json_lines(random_documents(1, 400, 200))));
    train_tokenizer({data}, 600, model());
    tokenizer_ = make_tokenizer(model());
    ASSERT_TRUE(processor_.Load(model()).ok());
  }
  static void TearDownTestSuite() {
    tokenizer_.reset();
    directory_.reset();
  }

  static std::string model() { return (directory_->path() / "small.model").string(); }
  static std::vector<std::int32_t> reference(const std::string& text) {
    std::vector<int> ids;
    EXPECT_TRUE(processor_.Encode(text, &ids).ok());
    return ids;
  }
  /// A copy of the model trained otherwise on the same words.
  static std::string other_model(const std::string& name, std::unordered_map<std::string, std::string> flags) {
    std::string text_file = (directory_->path() / "text.txt").string();
    std::string text;
    for (const std::string& document : random_documents(2, 200, 50)) text += document + "\n";
    write_bytes(text_file, text);
    flags.insert({{"input", text_file},
                  {"model_prefix", (directory_->path() / name).string()},
                  {"vocab_size", "400"},
                  {"byte_fallback", "true"},
                  {"minloglevel", "2"}});
    EXPECT_TRUE(sentencepiece::SentencePieceTrainer::Train(flags).ok());
    return (directory_->path() / (name + ".model")).string();
  }

  static std::unique_ptr<TemporaryDirectory> directory_;
  static std::shared_ptr<const Tokenizer> tokenizer_;
  static sentencepiece::SentencePieceProcessor processor_;
};

std::unique_ptr<TemporaryDirectory> SentencePiece::directory_;
std::shared_ptr<const Tokenizer> SentencePiece::tokenizer_;
sentencepiece::SentencePieceProcessor SentencePiece::processor_;

TEST_F(SentencePiece, TrainsWithTheFlagsOfLlama) {
  EXPECT_EQ(tokenizer_->vocabulary(), 600);
  EXPECT_EQ(tokenizer_->bos(), 1);
  EXPECT_EQ(tokenizer_->hash().size(), 32u);
  EXPECT_EQ(tokenizer_->name(), model());
  EXPECT_EQ(processor_.unk_id(), 0);
  EXPECT_EQ(processor_.eos_id(), 2);
  EXPECT_TRUE(processor_.IsByte(3));
  const auto facts = SentencePieceModel::parse(read_file(model()));
  ASSERT_TRUE(facts);
  EXPECT_TRUE(facts->bpe && facts->byte_fallback && facts->dummy_prefix && !facts->remove_extra_spaces);
  EXPECT_TRUE(facts->splits_at_spaces());
  EXPECT_EQ(encode(*tokenizer_, "1999").size(), 5u) << "digits are split";
}

TEST_F(SentencePiece, TrainingIsReproducible) {
  const auto data = put_file(directory_->path(), "again.jsonl", json_lines(random_documents(1, 400, 200)));
  const auto output = directory_->path() / "again.model";
  train_tokenizer({data}, 600, output);
  EXPECT_EQ(make_tokenizer(output.string())->hash(), tokenizer_->hash());
}

TEST_F(SentencePiece, TrainingReportsWhatItCannotDo) {
  const auto tiny = put_file(directory_->path(), "tiny.jsonl", json_line("a few words"));
  EXPECT_THROW(train_tokenizer({tiny}, 32000, directory_->path() / "no.model"), Error);
  const auto bad = put_file(directory_->path(), "bad.jsonl", "garbage\n");
  EXPECT_THROW(train_tokenizer({bad}, 600, directory_->path() / "no.model"), Error);
  EXPECT_FALSE(std::filesystem::exists(directory_->path() / "no.model"));
}

TEST_F(SentencePiece, EqualsTheLibraryOnDifficultText) {
  const std::string wide = "日本語のテキスト", mark = "\u2581";
  std::vector<std::string> texts = {"",
                                    " ",
                                    "  ",
                                    "\n",
                                    "\n\n\n",
                                    " \n ",
                                    "\n \n",
                                    "a",
                                    " a",
                                    "a ",
                                    "a  ",
                                    "\na",
                                    "a\n",
                                    "  a  b   c\n\n  d \n",
                                    "\t\t x",
                                    mark,
                                    mark + mark,
                                    mark + " a",
                                    " " + mark + "a",
                                    "a" + mark + " b",
                                    "a" + mark + "  b" + mark,
                                    "a " + mark + "\n" + mark,
                                    "<s>",
                                    "</s>",
                                    "<unk>",
                                    "<0x0A>",
                                    "a<s>b</s> <s>\n<s>",
                                    wide,
                                    wide + " " + wide + "\n" + wide,
                                    "\r\n\r\n",
                                    "\u00a0\u3000 x",
                                    std::string("nul\0in the middle", 17),
                                    std::string(5000, ' '),
                                    std::string(5000, '\n'),
                                    std::string(3000, 'z') + " end",
                                    "e\u0301 \u200d\ufeff \ufffd",
                                    "🙂🙂 👩‍👩‍👧 x"};
  std::mt19937 random(3);
  for (int round = 0; round < 300; ++round) texts.push_back(random_text(random, random() % 200));
  const std::vector<std::string> characters = {
      " ", " ", " ", "\n", mark, "a", "s", "1", "<", "é", "日", "🙂", std::string(1, '\0')};
  for (int round = 0; round < 1000; ++round) {
    std::string text;
    for (std::size_t length = random() % 40; length > 0; --length) text += characters[random() % characters.size()];
    texts.push_back(text);
  }
  for (int repeat = 0; repeat < 2; ++repeat) {  // without and with the words in the cache
    for (const std::string& text : texts) ASSERT_EQ(encode(*tokenizer_, text), reference(text)) << "\"" << text << "\"";
  }
}

TEST_F(SentencePiece, EqualsTheLibraryOnInvalidText) {
  std::mt19937 random(4);
  for (int round = 0; round < 1000; ++round) {
    const std::string text = mutate(random_text(random, 20), random);
    ASSERT_EQ(encode(*tokenizer_, text), reference(text)) << "\"" << text << "\"";
  }
}

TEST_F(SentencePiece, TextNeverBecomesAControlToken) {
  for (const std::string text : {"<s>", "a <s> b", "</s><unk>", "<0x0A>"}) {
    for (const std::int32_t id : encode(*tokenizer_, text))
      EXPECT_FALSE(processor_.IsControl(id) || processor_.IsUnknown(id));
    EXPECT_EQ(tokenizer_->decode(encode(*tokenizer_, text)), text);
  }
}

TEST_F(SentencePiece, DecodesWhatItEncoded) {
  for (std::string text : random_documents(5, 300)) {
    while (text.find("\u2581") != std::string::npos) text.erase(text.find("\u2581"), 3);  // reads as a space
    std::vector<std::int32_t> ids = {tokenizer_->bos()};
    tokenizer_->encode(text, ids);
    EXPECT_EQ(tokenizer_->decode(ids), text);
  }
  EXPECT_THROW(tokenizer_->decode(std::vector<std::int32_t>{600}), Error);
  EXPECT_THROW(tokenizer_->decode(std::vector<std::int32_t>{-1}), Error);
}

TEST_F(SentencePiece, CutsEndlessWordsBetweenCharacters) {
  std::string word;
  while (word.size() < 200'000) word += "日é";
  EXPECT_EQ(tokenizer_->decode(encode(*tokenizer_, word)), word);
  const std::string letters(300'000, 'q');
  EXPECT_EQ(tokenizer_->decode(encode(*tokenizer_, letters)), letters);
}

TEST_F(SentencePiece, ModelsThatDoNotSplitAtSpacesAreEncodedWhole) {
  const std::vector<std::pair<std::string, std::unordered_map<std::string, std::string>>> models = {
      {"unigram", {{"model_type", "unigram"}, {"hard_vocab_limit", "false"}}},
      {"phrases", {{"model_type", "bpe"}, {"split_by_whitespace", "false"}, {"normalization_rule_name", "identity"}}},
      {"normalized", {{"model_type", "bpe"}, {"normalization_rule_name", "nmt_nfkc"}}},
      {"symbols", {{"model_type", "bpe"}, {"user_defined_symbols", "of a"}, {"remove_extra_whitespaces", "false"}}},
  };
  for (const auto& [name, flags] : models) {
    const std::string file = other_model(name, flags);
    const auto facts = SentencePieceModel::parse(read_file(file));
    ASSERT_TRUE(facts);
    EXPECT_FALSE(facts->splits_at_spaces()) << name;
    const auto tokenizer = make_tokenizer(file);
    sentencepiece::SentencePieceProcessor processor;
    ASSERT_TRUE(processor.Load(file).ok());
    for (const std::string& text : random_documents(6, 50)) {
      std::vector<int> ids;
      ASSERT_TRUE(processor.Encode(text, &ids).ok());
      EXPECT_EQ(encode(*tokenizer, text), ids) << name;
    }
  }
}

TEST_F(SentencePiece, AModelWithoutDummyPrefixIsExactToo) {
  const std::string file = other_model("bare", {{"model_type", "bpe"},
                                                {"normalization_rule_name", "identity"},
                                                {"add_dummy_prefix", "false"},
                                                {"remove_extra_whitespaces", "false"}});
  ASSERT_TRUE(SentencePieceModel::parse(read_file(file))->splits_at_spaces());
  const auto tokenizer = make_tokenizer(file);
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.Load(file).ok());
  for (const std::string& text : random_documents(7, 200)) {
    std::vector<int> ids;
    ASSERT_TRUE(processor.Encode(text, &ids).ok());
    EXPECT_EQ(encode(*tokenizer, text), ids);
  }
}

TEST_F(SentencePiece, RefusesWhatIsNoModel) {
  EXPECT_THROW(make_tokenizer((directory_->path() / "missing.model").string()), Error);
  EXPECT_THROW(make_tokenizer(put_file(directory_->path(), "text.model", "not a model").string()), Error);
  EXPECT_THROW(make_tokenizer(other_model("no_bos", {{"model_type", "bpe"}, {"bos_id", "-1"}})), Error);
}

TEST_F(SentencePiece, ModelParserSurvivesMutations) {
  std::mt19937 random(8);
  const std::string bytes = read_file(model());
  for (int round = 0; round < 300; ++round) SentencePieceModel::parse(mutate(bytes, random));
}

TEST_F(SentencePiece, ServesSeveralThreads) {
  const auto texts = random_documents(9, 100);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (const std::string& text : texts) wrong += encode(*tokenizer_, text) != reference(text);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace dm
