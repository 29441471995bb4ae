// Documents out of plain and zstd files: every shape of file, every kind of damage, both policies, resume at every document.
#include "dataloader/source.h"

#include <functional>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "dataloader/byte_stream.h"
#include "dataloader/line_reader.h"
#include "runtime/error.h"
#include "tests/dataloader/small_data.h"
#include "tests/testing/mutate.h"
#include "tests/testing/temporary_directory.h"

namespace dm {
namespace {

std::vector<Document> read_all(SourceOptions options, const DataState& start = {}) {
  DocumentSource source(std::move(options), start);
  std::vector<Document> documents;
  while (auto document = source.next()) documents.push_back(std::move(*document));
  return documents;
}

std::vector<std::string> texts_of(const std::vector<Document>& documents) {
  std::vector<std::string> texts;
  for (const Document& document : documents) texts.push_back(document.text);
  return texts;
}

class Source : public testing::Test {
 protected:
  std::filesystem::path put(const std::string& name, std::string_view bytes) {
    return put_file(directory_.path(), name, bytes);
  }
  std::vector<Document> read(const std::filesystem::path& file, OnError on_error = OnError::error) {
    return read_all({.files = {file}, .on_error = on_error});
  }

  TemporaryDirectory directory_;
};

TEST_F(Source, ReadsEveryShapeOfFile) {
  const std::vector<std::string> documents = random_documents(1, 300);
  const std::string lines = json_lines(documents);
  const std::vector<std::pair<std::string, std::string>> files = {
      {"plain.jsonl", lines},
      {"no_last_newline.jsonl", lines.substr(0, lines.size() - 1)},
      {"one.jsonl.zst", zstd_frame(lines)},
      {"unknown_size.jsonl.zst", zstd_frame(lines, false, true)},
      {"many.jsonl.zst", zstd_frames(lines, 777)},
      {"skippable_first.jsonl.zst", skippable_frame("user data") + zstd_frame(lines) + skippable_frame("")},
      {"empty_frames.jsonl.zst", zstd_frame("") + zstd_frame(lines) + zstd_frame("")},
  };
  for (const auto& [name, bytes] : files) EXPECT_EQ(texts_of(read(put(name, bytes))), documents) << name;
}

TEST_F(Source, ReadsFramesWithAWindowOfOneGigabyte) {
  const std::string lines = json_lines(random_documents(2, 20));
  ZSTD_CCtx* const context = ZSTD_createCCtx();
  ZSTD_CCtx_setParameter(context, ZSTD_c_windowLog, 30);
  ZSTD_CCtx_setParameter(context, ZSTD_c_hashLog, 10);
  ZSTD_CCtx_setParameter(context, ZSTD_c_chainLog, 10);
  ZSTD_inBuffer in{lines.data(), lines.size(), 0};
  std::string frame(ZSTD_compressBound(lines.size()), '\0');
  ZSTD_outBuffer out{frame.data(), frame.size(), 0};
  // Flushed before the end, so that the frame cannot know that it is small.
  ASSERT_FALSE(ZSTD_isError(ZSTD_compressStream2(context, &out, &in, ZSTD_e_flush)));
  ASSERT_EQ(ZSTD_compressStream2(context, &out, &in, ZSTD_e_end), 0u);
  ZSTD_freeCCtx(context);
  frame.resize(out.pos);
  EXPECT_EQ(read(put("window.jsonl.zst", frame)).size(), 20u);
}

TEST_F(Source, KeepsTheTextExactly) {
  const std::vector<std::string> documents = {
      "", "<s>", std::string("a\0b", 3), "  two  spaces \n\n", "\r\n\t", "𝔘🙂é\u2581"};
  EXPECT_EQ(texts_of(read(put("a.jsonl", json_lines(documents)))), documents);
  EXPECT_EQ(read(put("b.jsonl", R"({"te\u0078t": "\ud83d\ude42"})")).at(0).text, "🙂");
}

TEST_F(Source, TakesOtherKeysBlankLinesAndCarriageReturns) {
  const auto documents = read(put("a.jsonl",
                                  "\n{\"meta\":\"a string\",\"text\":\"one\"}\r\n\r\n"
                                  "{\"id\": [1, -2.5e3, true, null, {}], \"text\": \"two\", \"text2\": \"no\"}\n"
                                  "{\"text\":\"three\"}"));
  EXPECT_EQ(texts_of(documents), (std::vector<std::string>{"one", "two", "three"}));
  EXPECT_EQ(documents[0].position.line, 1);
  EXPECT_EQ(documents[0].position.offset, 1);
  EXPECT_EQ(documents[2].position.line, 4);
}

TEST_F(Source, ReadsADocumentOfManyMegabytes) {
  const std::string big(20 << 20, 'x');
  EXPECT_EQ(texts_of(read(put("a.jsonl.zst", zstd_frame(json_lines({"small", big, "last"}))))),
            (std::vector<std::string>{"small", big, "last"}));
}

/// A line that is no document, and a word of what the error must say.
const std::vector<std::pair<std::string, std::string>> kBadLines = {
    {"{\"text\": \"cut", "JSON"},
    {"{\"text\": \"a\"", "JSON"},
    {"{\"text\": \"a\"} {}", "JSON"},
    {"{\"text\": \"a\", \"meta\": nothing}", "JSON"},
    {"{\"text\": \"a\", \"meta\": [1, 2}", "JSON"},
    {"{\"text\": \"bad \\x escape\"}", "JSON"},
    {"[\"text\"]", "JSON"},
    {"\"text\"", "JSON"},
    {"garbage", "JSON"},
    {"{\"meta\": {\"text\": \"not here\"}}", "no key"},
    {"{}", "no key"},
    {"{\"text\": null}", "not a string"},
    {"{\"text\": [\"a\"]}", "not a string"},
    {"{\"text\": \"a\", \"text\": \"b\"}", "two keys"},
    {"{\"text\": \"\xff\xfe\"}", "UTF-8"},
    {"{\"text\": \"a\", \"meta\": \"\xc3\"}", "UTF-8"},
    {"{\"text\": \"half a pair \\ud83d\\u0041\"}", "string"},
    {"{\"text\": \"half a pair \\ud83d\"}", "string"},
    {"{\"text\": \"lone surrogate \\udc00\"}", "string"},
};

TEST_F(Source, NamesOrSkipsEveryBadLine) {
  for (const auto& [bad, word] : kBadLines) {
    const std::string first = json_line("one");
    const auto file = put("bad.jsonl.zst", zstd_frames(first + bad + "\n" + json_line("two"), 10));
    const std::string message = error_of([&] { read(file); });
    for (const std::string& part : {file.string(), word, std::string("line 2"), fmt::format("byte {}", first.size())})
      EXPECT_NE(message.find(part), std::string::npos) << bad << ": " << message << " lacks " << part;

    const auto documents = read(file, OnError::skip);
    EXPECT_EQ(texts_of(documents), (std::vector<std::string>{"one", "two"})) << bad;
    ASSERT_EQ(documents[1].skipped.size(), 1u);
    EXPECT_NE(documents[1].skipped[0].find(word), std::string::npos);
    EXPECT_EQ(documents[1].position.skipped_lines, 1);
    EXPECT_EQ(documents[0].position.skipped_lines, 0);
  }
}

TEST_F(Source, NamesTheFrameOfATruncatedFile) {
  const std::string first = zstd_frame(json_lines(random_documents(3, 40)));
  const std::string second = zstd_frame(json_lines(random_documents(4, 40)));
  const auto file = put("cut.jsonl.zst", first + second.substr(0, second.size() / 2));
  const std::string message = error_of([&] { read(file); });
  for (const std::string& part : {file.string(), std::string("frame 2"), std::string("ends inside the frame")})
    EXPECT_NE(message.find(part), std::string::npos) << message;
  const auto documents = read(file, OnError::skip);
  EXPECT_GE(documents.size(), 40u);
  EXPECT_LT(documents.size(), 80u);
}

TEST_F(Source, GoesOnBehindADamagedFrame) {
  const std::vector<std::string> first = random_documents(5, 30), second = random_documents(6, 30),
                                 third = random_documents(7, 30);
  const std::string head = zstd_frame(json_lines(first), true, true);
  std::string body = zstd_frame(json_lines(second), true, true);
  body[body.size() / 2] ^= 0x10;
  const auto file = put("flip.jsonl.zst", head + body + skippable_frame("x") + zstd_frame(json_lines(third)));
  const std::string message = error_of([&] { read(file); });
  for (const std::string& part : {file.string(), std::string("frame 2"), std::string("damaged near byte")})
    EXPECT_NE(message.find(part), std::string::npos) << message;

  const auto documents = read(file, OnError::skip);
  const auto texts = texts_of(documents);
  ASSERT_GE(texts.size(), 60u);
  EXPECT_TRUE(std::equal(first.begin(), first.end(), texts.begin()));
  EXPECT_TRUE(std::equal(third.rbegin(), third.rend(), texts.rbegin()));
  EXPECT_EQ(documents.back().position.skipped_frames, 1);
}

TEST_F(Source, NoFlippedBitPassesAChecksum) {
  const std::vector<std::string> documents = random_documents(8, 6, 20);
  std::string whole;
  for (const std::string& document : documents) whole += zstd_frame(json_line(document), true, true);
  for (std::size_t bit = 0; bit < whole.size() * 8; bit += 61) {
    std::string bytes = whole;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << bit % 8));
    const auto file = put("flip.jsonl.zst", bytes);
    try {
      EXPECT_EQ(texts_of(read(file)), documents) << "bit " << bit;  // some bits mean nothing
    } catch (const Error&) {
    }
    for (const std::string& text : texts_of(read(file, OnError::skip)))
      EXPECT_NE(std::find(documents.begin(), documents.end(), text), documents.end()) << "bit " << bit;
  }
}

TEST_F(Source, SurvivesMutatedFiles) {
  std::mt19937 random(9);
  const std::string whole = zstd_frames(json_lines(random_documents(9, 12, 20)), 200);
  for (int round = 0; round < 150; ++round) {
    const auto file = put("fuzz.jsonl.zst", mutate(whole, random));
    for (const OnError on_error : {OnError::skip, OnError::error}) {
      try {
        read(file, on_error);
      } catch (const Error&) {
      }
    }
  }
}

TEST_F(Source, EveryTruncationIsSafe) {
  const std::string whole = zstd_frames(json_lines(random_documents(10, 10, 20)), 100);
  for (std::size_t size = 1; size < whole.size(); size += 7) {
    try {
      read(put("cut.jsonl.zst", std::string_view(whole).substr(0, size)), OnError::skip);
    } catch (const Error&) {  // no document at all
    }
  }
}

TEST_F(Source, LineParserSurvivesMutations) {
  std::mt19937 random(11);
  LineParser parser;
  const std::string seed =
      R"({"meta":{"pile_set_name":["a",1.5,null,true]},"text":"a\u00e9\ud83d\ude42\n\"quoted\" text","more":{"x":[[],{}]}})";
  std::size_t good = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string line = mutate(seed, random), text;
    std::erase(line, '\n');
    const std::string error = parser.parse(line, text);
    good += error.empty();
    // Nothing passes that another strict parser refuses, and the text is what that one reads.
    const auto json = nlohmann::json::parse(line, nullptr, false);
    if (!error.empty()) continue;
    ASSERT_FALSE(json.is_discarded()) << line;
    EXPECT_EQ(json.at("text").get<std::string>(), text) << line;
  }
  EXPECT_GT(good, 0u);
}

TEST_F(Source, LinesAboveTheLimitArePassed) {
  LineReader reader(put("a.jsonl", "12345678\n123456789\nabc"), 8);
  std::string line;
  EXPECT_EQ(reader.next(line), LineReader::Status::line);
  EXPECT_EQ(reader.next(line), LineReader::Status::too_long);
  EXPECT_EQ(reader.next(line), LineReader::Status::line);
  EXPECT_EQ(line, "abc");
  EXPECT_EQ(reader.offset(), 22);
  EXPECT_EQ(reader.next(line), LineReader::Status::end);
}

TEST_F(Source, ResumesAtEveryDocument) {
  std::string lines = json_lines(random_documents(12, 20)) + "bad\n\n" + json_lines(random_documents(13, 20));
  std::string damaged = zstd_frame(lines, true, true);
  damaged[damaged.size() / 2] ^= 1;
  const std::vector<std::filesystem::path> files = {
      put("a.jsonl.zst", zstd_frames(lines, 1000)), put("b.jsonl", lines),
      // A frame whose damage loses no byte before the next document: the place must still be named once.
      put("c.jsonl.zst", zstd_frame(lines) + damaged.substr(0, 20) + damaged + zstd_frame(lines))};
  const SourceOptions options{.files = files, .on_error = OnError::skip};
  const auto all = read_all(options);
  ASSERT_GT(all.size(), 150u);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const auto rest = read_all(options, all[i].position);
    ASSERT_EQ(rest.size(), all.size() - i);
    for (std::size_t j = 0; j < rest.size(); ++j) {
      EXPECT_EQ(rest[j].text, all[i + j].text);
      EXPECT_EQ(rest[j].position, all[i + j].position);
    }
  }
}

TEST_F(Source, RefusesAStateOfOtherData) {
  const std::string lines = json_lines(random_documents(14, 10));
  const SourceOptions options{.files = {put("a.jsonl", lines)}};
  const DataState good = read_all(options).at(5).position;
  const auto refused = [&](const std::function<void(DataState&)>& change, const std::string& word) {
    DataState state = good;
    change(state);
    const std::string message = error_of([&] { read_all(options, state); });
    EXPECT_NE(message.find(word), std::string::npos) << message;
  };
  refused([](DataState& state) { ++state.offset; }, "the file differs");
  refused([](DataState& state) { ++state.line; }, "the file differs");
  refused([](DataState& state) { state.offset = 1 << 30; }, "the file differs");
  refused([](DataState& state) { state.file = 1; }, "the files differ");
  refused(
      [&](DataState& state) {
        state.offset = static_cast<std::int64_t>(lines.size());
        state.line = 10;
        state.token = 1;
      },
      "no document");
}

TEST_F(Source, RepeatsAndCountsEpochs) {
  const std::vector<std::string> first = random_documents(15, 3), second = random_documents(16, 2);
  DocumentSource source({.files = {put("a.jsonl", json_lines(first)), put("b.jsonl", json_lines(second) + "bad\n")},
                         .on_error = OnError::skip,
                         .repeat = true},
                        {});
  for (int epoch = 0; epoch < 3; ++epoch) {
    for (std::size_t i = 0; i < 5; ++i) {
      const auto document = source.next();
      ASSERT_TRUE(document);
      EXPECT_EQ(document->text, i < 3 ? first[i] : second[i - 3]);
      EXPECT_EQ(document->position.epoch, epoch);
      EXPECT_EQ(document->position.file, i < 3 ? 0 : 1);
      EXPECT_EQ(document->position.skipped_lines, epoch);
    }
  }
}

TEST_F(Source, RefusesDataWithoutADocument) {
  for (const bool repeat : {false, true}) {
    for (const std::string& bytes : {std::string("\n\n"), std::string("bad\n")}) {
      const SourceOptions options{.files = {put("a.jsonl", bytes)}, .on_error = OnError::skip, .repeat = repeat};
      EXPECT_NE(error_of([&] { read_all(options); }).find("no document to use"), std::string::npos);
    }
  }
}

TEST_F(Source, HoldoutSplitsByTextAndNeverOverlaps) {
  std::vector<std::string> documents = random_documents(17, 1000, 30);
  for (std::size_t i = 0; i < 100; ++i) documents.push_back(std::string(documents[i]));
  const auto file = put("a.jsonl", json_lines(documents));
  const auto train = texts_of(read_all({.files = {file}, .split = Split::train, .holdout = 0.2}));
  const auto valid = texts_of(read_all({.files = {file}, .split = Split::valid, .holdout = 0.2}));
  EXPECT_EQ(train.size() + valid.size(), documents.size());
  for (const std::string& text : valid) EXPECT_EQ(std::find(train.begin(), train.end(), text), train.end());
  EXPECT_NEAR(static_cast<double>(valid.size()) / static_cast<double>(documents.size()), 0.2, 0.05);
  EXPECT_EQ(read_all({.files = {file}, .split = Split::train}).size(), documents.size());
  EXPECT_NE(error_of([&] { read_all({.files = {file}, .split = Split::valid}); }).find("holdout is 0"), std::string::npos);
}

TEST_F(Source, ExpandsPatternsInOrder) {
  const auto b = put("b.jsonl", "x"), a = put("a.jsonl", "x"), c = put("c.txt", "x");
  const std::string folder = directory_.path().string();
  EXPECT_EQ(expand_files({folder + "/c.txt", folder + "/*.jsonl"}), (std::vector<std::filesystem::path>{c, a, b}));
  EXPECT_NE(error_of([&] { expand_files({folder + "/*.zst"}); }).find("no file matches " + folder), std::string::npos);
  EXPECT_NE(error_of([&] { expand_files({folder}); }).find("not a regular file"), std::string::npos);
  put("empty.jsonl", "");
  EXPECT_NE(error_of([&] { expand_files({folder + "/*.jsonl"}); }).find("empty.jsonl is empty: no data"), std::string::npos);
}

TEST(OnErrorNames, AreTwo) {
  EXPECT_EQ(parse_on_error("error"), OnError::error);
  EXPECT_EQ(parse_on_error("skip"), OnError::skip);
  EXPECT_NE(error_of([] { parse_on_error("ignore"); }).find("ignore"), std::string::npos);
}

}  // namespace
}  // namespace dm
