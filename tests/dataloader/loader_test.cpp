// The loader against a serial reference, over grids, threads, resumes, epochs and damage.
#include "dataloader/loader.h"

#include <chrono>
#include <thread>

#include <gtest/gtest.h>

#include "runtime/error.h"
#include "tests/dataloader/small_data.h"
#include "tests/testing/temporary_directory.h"

namespace dm {
namespace {

/// Words become ids without a SentencePiece model: fast, of varying length, with the vocabulary of the bytes.
std::vector<std::int32_t> stream_of(const Tokenizer& tokenizer, const std::vector<std::string>& documents) {
  std::vector<std::int32_t> stream;
  for (const std::string& document : documents) {
    stream.push_back(tokenizer.bos());
    tokenizer.encode(document, stream);
  }
  return stream;
}

std::vector<std::int32_t> part(const std::vector<std::int32_t>& stream, std::int64_t begin, std::int64_t count) {
  std::vector<std::int32_t> tokens;
  for (std::int64_t i = 0; i < count; ++i)
    tokens.push_back(stream[static_cast<std::size_t>(begin + i) % stream.size()]);  // epoch after epoch
  return tokens;
}

class Loading : public testing::Test {
 protected:
  Loading() {
    std::vector<std::vector<std::string>> files = {random_documents(1, 40, 20), {"", "", "x"}, random_documents(2, 25, 20)};
    files.push_back({random_documents(3, 1, 2000)});
    for (std::size_t i = 0; i < files.size(); ++i) {
      const std::string lines = json_lines(files[i]);
      const std::string name = "part" + std::to_string(i) + (i % 2 == 0 ? ".jsonl.zst" : ".jsonl");
      options_.source.files.push_back(put_file(directory_.path(), name, i % 2 == 0 ? zstd_frames(lines, 500) : lines));
      documents_.insert(documents_.end(), files[i].begin(), files[i].end());
    }
    options_.tokenizer = make_tokenizer("bytes");
    options_.sequence = 17;
    options_.batch = 4;
    stream_ = stream_of(*options_.tokenizer, documents_);
  }

  LoaderOptions with(int rank, int world, std::int64_t threads, bool repeat) const {
    LoaderOptions options = options_;
    options.rank = rank;
    options.world = world;
    options.threads = threads;
    options.source.repeat = repeat;
    return options;
  }
  std::int64_t step_tokens() const { return options_.sequence * options_.batch; }
  /// Steps of one pass: the last target must exist.
  std::int64_t steps() const { return (static_cast<std::int64_t>(stream_.size()) - 1) / step_tokens(); }

  /// Checks step `step` of rank `rank` of `world` against the stream.
  void expect_step(const StepBatch& batch, std::int64_t step, int rank, int world) const {
    const std::int64_t count = options_.batch / world;
    const std::int64_t begin = (step * options_.batch + rank * count) * options_.sequence;
    ASSERT_EQ(batch.count, count);
    EXPECT_EQ(batch.tokens, part(stream_, begin, count * options_.sequence)) << "step " << step;
    EXPECT_EQ(batch.targets, part(stream_, begin + 1, count * options_.sequence)) << "step " << step;
    EXPECT_EQ(batch.after.sequences, (step + 1) * options_.batch);
    EXPECT_EQ(batch.after.tokens, (step + 1) * step_tokens());
  }

  TemporaryDirectory directory_;
  LoaderOptions options_;
  std::vector<std::string> documents_;
  std::vector<std::int32_t> stream_;
};

TEST_F(Loading, EqualsTheSerialReferenceOnEveryGrid) {
  for (const int world : {1, 2, 4}) {
    for (int rank = 0; rank < world; ++rank) {
      for (const std::int64_t threads : {1, 3}) {
        Loader loader(with(rank, world, threads, false));
        for (std::int64_t step = 0; step < steps(); ++step) {
          const auto batch = loader.next();
          ASSERT_TRUE(batch);
          expect_step(*batch, step, rank, world);
        }
        EXPECT_FALSE(loader.next());
        EXPECT_FALSE(loader.next());
      }
    }
  }
}

TEST_F(Loading, RepeatsForEver) {
  Loader loader(with(0, 2, 2, true));
  for (std::int64_t step = 0; step < 3 * steps() + 5; ++step) expect_step(*loader.next(), step, 0, 2);
  EXPECT_EQ(loader.next()->after.epoch, 3);
}

TEST_F(Loading, ResumesAtEveryStepOnAnyGrid) {
  Loader whole(with(0, 1, 1, true));
  std::vector<StepBatch> all;
  for (std::int64_t step = 0; step < 2 * steps() + 3; ++step) all.push_back(*whole.next());
  for (std::size_t step = 0; step + 2 < all.size(); ++step) {
    const int world = step % 3 == 0 ? 1 : step % 3 == 1 ? 2 : 4;
    const int rank = static_cast<int>(step) % world;
    // What a checkpoint keeps is JSON.
    const auto state = nlohmann::json::parse(nlohmann::json(all[step].after).dump()).get<DataState>();
    Loader resumed(with(rank, world, static_cast<std::int64_t>(1 + step % 2), true), state);
    for (std::size_t later = step + 1; later < step + 3; ++later) {
      const auto batch = resumed.next();
      ASSERT_TRUE(batch);
      expect_step(*batch, static_cast<std::int64_t>(later), rank, world);
      EXPECT_EQ(batch->after, all[later].after);
    }
  }
}

TEST_F(Loading, ResumesWithAnotherBatchAndSequence) {
  Loader first(with(0, 1, 1, true));
  DataState state;
  for (int step = 0; step < 7; ++step) state = first.next()->after;
  LoaderOptions options = with(1, 3, 1, true);
  options.batch = 6;
  options.sequence = 29;
  Loader second(options, state);
  const auto batch = second.next();
  EXPECT_EQ(batch->tokens, part(stream_, 7 * step_tokens() + 2 * 29, 2 * 29));
  EXPECT_EQ(batch->after.sequences, 7 * 4 + 6);
  EXPECT_EQ(batch->after.tokens, 7 * step_tokens() + 6 * 29);
}

TEST_F(Loading, SkipsTheSameUnitsOnEveryRankAndAfterAResume) {
  const std::string lines = json_lines(random_documents(4, 60, 20));
  std::string damaged = zstd_frame(json_lines(random_documents(5, 60, 20)), true, true);
  damaged[damaged.size() / 2] ^= 4;
  options_.source.files = {
      put_file(directory_.path(), "bad.jsonl.zst", zstd_frame(lines + "garbage\n") + damaged + zstd_frame("{}\n" + lines))};
  options_.source.on_error = OnError::skip;
  Loader first(with(0, 2, 1, true)), second(with(1, 2, 2, true));
  for (int step = 0; step < 60; ++step) {
    const auto a = first.next(), b = second.next();
    EXPECT_EQ(a->after, b->after);
    EXPECT_EQ(a->skipped, b->skipped);
    Loader resumed(with(0, 1, 1, true), a->after);
    const auto c = first.next(), d = second.next(), e = resumed.next();
    EXPECT_EQ(e->after, c->after);
    std::vector<std::int32_t> both = c->tokens;
    both.insert(both.end(), d->tokens.begin(), d->tokens.end());
    EXPECT_EQ(e->tokens, both);
  }
  const DataState state = first.next()->after;
  EXPECT_GE(state.epoch, 1);
  EXPECT_GE(state.skipped_frames, 1);
  EXPECT_GE(state.skipped_lines, 2);
}

TEST_F(Loading, GivesTheStepsBeforeAFailureThenTheErrorForEver) {
  options_.source.files.push_back(put_file(directory_.path(), "bad.jsonl", "garbage\n"));
  Loader loader(with(0, 1, 2, true));
  for (std::int64_t step = 0; step < steps(); ++step) expect_step(*loader.next(), step, 0, 1);
  for (int again = 0; again < 2; ++again) {
    const std::string message = error_of([&] { loader.next(); });
    EXPECT_NE(message.find("bad.jsonl, line 1"), std::string::npos) << message;
  }
}

TEST_F(Loading, RefusesATokenOutsideTheVocabulary) {
  LoaderOptions options = with(0, 1, 1, true);
  options.vocabulary = 200;
  EXPECT_NE(error_of([&] { Loader(options).next(); }).find("outside the vocabulary of 200"), std::string::npos);
}

TEST_F(Loading, RefusesAStateBehindItsDocument) {
  DataState state;
  state.token = 1 << 20;
  const std::string message = error_of([&] { Loader(with(0, 1, 1, true), state).next(); });
  EXPECT_NE(message.find("the data state lies behind"), std::string::npos) << message;
}

TEST_F(Loading, RefusesOptionsThatDoNotFit) {
  EXPECT_NE(error_of([&] { Loader(with(0, 3, 1, true)); }).find("batch is 4"), std::string::npos);
  EXPECT_NE(error_of([&] { Loader(with(0, 1, 0, true)); }).find("threads"), std::string::npos);
  LoaderOptions options = with(0, 1, 1, true);
  options.source.files.clear();
  EXPECT_NE(error_of([&] { Loader{options}; }).find("no data"), std::string::npos);
}

TEST_F(Loading, DataWithoutADocumentIsAnErrorAndNotALoop) {
  options_.source.files = {put_file(directory_.path(), "none.jsonl", "\n\n\n")};
  EXPECT_NE(error_of([&] { Loader(with(0, 1, 1, true)).next(); }).find("no document to use"), std::string::npos);
}

TEST_F(Loading, EndsWhateverItsThreadsWaitFor) {
  for (int round = 0; round < 30; ++round) {
    Loader loader(with(0, 1, 3, true));
    if (round % 3 > 0) loader.next();
    if (round % 3 > 1) std::this_thread::sleep_for(std::chrono::milliseconds(5));  // queues fill up
  }
  // More text than may wait: the reader itself is blocked.
  options_.source.files = {
      put_file(directory_.path(), "big.jsonl", json_lines(std::vector<std::string>(12, std::string(1 << 20, 'x'))))};
  Loader loader(with(0, 1, 1, true));
  loader.next();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
}

TEST_F(Loading, ASentencePieceStreamEqualsTheReferenceToo) {
  const auto model = directory_.path() / "small.model";
  train_tokenizer(options_.source.files, 500, model);
  options_.tokenizer = make_tokenizer(model.string());
  stream_ = stream_of(*options_.tokenizer, documents_);
  Loader loader(with(1, 2, 3, false));
  for (std::int64_t step = 0; step < steps(); ++step) expect_step(*loader.next(), step, 1, 2);
  EXPECT_FALSE(loader.next());
}

}  // namespace
}  // namespace dm
