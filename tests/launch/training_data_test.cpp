// Batches and validation as one rank sees them, and what is refused before anything is read.
#include "launch/training_data.h"

#include <gtest/gtest.h>

#include <set>

#include "runtime/error.h"
#include "tests/testing/temporary_directory.h"

namespace dm {
namespace {

class TrainingDataTest : public ::testing::Test {
 protected:
  TrainingDataTest() {
    std::string lines;
    for (int i = 0; i < 40; ++i) lines += "{\"text\": \"document " + std::to_string(i) + "\"}\n";
    write_bytes(file("a.jsonl"), lines);
    write_bytes(file("b.jsonl"), "{\"text\": \"bad\n" + lines + "{\"text\": \"another\"}\n");
    options_.data.train = {file("a.jsonl")};
    options_.model.vocabulary = 257;
    options_.train.batch = 2;
    options_.train.sequence = 8;
    options_.train.valid_sequences = 3;
  }
  std::string file(const std::string& name) const { return (directory_.path() / name).string(); }
  TrainingData open(const DataState& start = {}) {
    sources_ = DataSources::open(options_.data);
    return TrainingData(options_, sources_, grid_, start);
  }
  std::string refusal() {
    try {
      TrainingData data = open();
      data.read_validation();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::usage);
      return error.what();
    }
    return "not refused";
  }

  TemporaryDirectory directory_;
  TrainOptions options_;
  DataSources sources_;
  Grid grid_ = Grid::make(make_self_communicator(), 1);
  Trace trace_;
  Log log_{false, "test"};
};

TEST_F(TrainingDataTest, StepsFollowOneAnotherAlsoFromAState) {
  TrainingData data = open();
  EXPECT_FALSE(data.has_validation());
  const Sequences first = data.next(trace_, log_);
  EXPECT_EQ(first.count, 2);
  EXPECT_EQ(first.tokens.front(), 256);  // BOS
  EXPECT_EQ(first.tokens[1], 'd');
  EXPECT_TRUE(std::equal(first.tokens.begin() + 1, first.tokens.end(), first.targets.begin()));
  const DataState state = data.state();
  EXPECT_EQ(state.tokens, 16);
  const Sequences second = data.next(trace_, log_);
  EXPECT_EQ(first.targets.back(), second.tokens.front());
  EXPECT_EQ(open(state).next(trace_, log_).tokens, second.tokens);
}

TEST_F(TrainingDataTest, SyntheticStepsReplaceFilesAndGoOnFromAState) {
  options_.data.synthetic = true;
  options_.data.train = {file("absent.jsonl")};
  options_.data.holdout = 0.1;
  TrainingData data = open();
  EXPECT_FALSE(data.has_validation());
  const Sequences first = data.next(trace_, log_);
  ASSERT_EQ(first.tokens.size(), 16u);
  EXPECT_TRUE(std::equal(first.tokens.begin() + 1, first.tokens.end(), first.targets.begin()));
  EXPECT_GT(std::set<std::int32_t>(first.tokens.begin(), first.tokens.end()).size(), 8u);
  const DataState state = data.state();
  const Sequences second = data.next(trace_, log_);
  EXPECT_NE(first.tokens, second.tokens);
  EXPECT_EQ(open(state).next(trace_, log_).tokens, second.tokens);
}

TEST_F(TrainingDataTest, SyntheticSequencesAreTheSameOnEveryGrid) {
  options_.data.synthetic = true;
  const Sequences whole = synthetic_step(options_, grid_, 6);
  Grid half = Grid::plan(2, 1);  // its rank 0 has the first of the two sequences
  const Sequences part = synthetic_step(options_, half, 6);
  ASSERT_EQ(part.count, 1);
  EXPECT_TRUE(std::equal(part.tokens.begin(), part.tokens.end(), whole.tokens.begin()));
}

TEST_F(TrainingDataTest, ValidationIsTheBeginningOfItsFilesOrOfTheHeldOutPart) {
  write_bytes(file("v.jsonl"), "{\"text\": \"0123456789012345678901234567890123456789\"}\n");
  options_.data.valid = {file("v.jsonl")};
  TrainingData files = open();
  EXPECT_TRUE(files.has_validation());
  files.read_validation();
  const Sequences& valid = files.validation();
  EXPECT_EQ(valid.count, 3);
  EXPECT_EQ(valid.tokens.size(), 24u);
  EXPECT_EQ(valid.targets.front(), '0');
  EXPECT_EQ(valid.targets.back(), '3');

  options_.data.valid = {};
  options_.data.holdout = 0.3;
  TrainingData held_out = open();
  held_out.read_validation();
  EXPECT_EQ(held_out.validation().targets.front(), 'd');
  EXPECT_NE(held_out.validation().targets, held_out.next(trace_, log_).targets);
}

TEST_F(TrainingDataTest, RefusesBeforeTheFirstStep) {
  const TrainOptions::Data good = options_.data;
  options_.data.train = {};
  EXPECT_NE(refusal().find("--data.train"), std::string::npos);
  options_.data.train = {file("nothing")};
  EXPECT_NE(refusal().find("nothing"), std::string::npos);
  options_.data = good;
  options_.data.valid = good.train;
  EXPECT_NE(refusal().find("a.jsonl"), std::string::npos);
  options_.data.valid = {file("b.jsonl")};
  options_.data.holdout = 0.1;
  EXPECT_NE(refusal().find("exclude each other"), std::string::npos);
  options_.data = good;
  options_.data.holdout = 0.3;
  options_.train.valid_sequences = 1000;
  EXPECT_NE(refusal().find("fewer than 1000 sequences"), std::string::npos);
}

TEST_F(TrainingDataTest, TellsWhatWasSkipped) {
  options_.data.train = {file("b.jsonl")};
  EXPECT_THROW(open().next(trace_, log_), Error);
  options_.data.on_error = "skip";
  TrainingData data = open();
  ::testing::internal::CaptureStderr();
  data.next(trace_, log_);
  const std::string told = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(told.find("b.jsonl, line 1 (byte 0): no valid JSON"), std::string::npos) << told;
  EXPECT_EQ(data.state().skipped_lines, 1);
}

}  // namespace
}  // namespace dm
