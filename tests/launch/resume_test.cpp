// Which checkpoint is chosen, which differences are refused, and the record that both rest on.
#include "launch/resume.h"

#include <gtest/gtest.h>

#include "launch/run_record.h"
#include "parallel/checkpoint.h"
#include "runtime/error.h"
#include "runtime/fault.h"
#include "tests/testing/temporary_directory.h"

namespace dm {
namespace {

namespace fs = std::filesystem;

class ChooseCheckpoint : public ::testing::Test {
 protected:
  fs::path run(const std::string& name) const { return directory_.path() / name; }
  fs::path save(const std::string& name, std::int64_t step) {
    fs::create_directories(run(name) / "checkpoints");
    std::vector<float> values(6, 1.0f);
    FaultInjector faults;
    const auto world = make_self_communicator();
    return save_checkpoint(*world, run(name) / "checkpoints", step,
                           {{"weight", StateKind::value, {2, 3}, {0, 0, 2, 3}, Tensor::of(values.data(), {6})}},
                           nlohmann::json::object(), faults);
  }
  static void damage(const fs::path& checkpoint) { set_byte(checkpoint / "shard_0.safetensors", 20, '!'); }
  std::optional<fs::path> choose(const std::string& resume, const std::string& name = "run") {
    return choose_checkpoint(resume, run(name), log_);
  }
  std::string refusal(const std::string& resume, ExitCode code, const std::string& name = "run") {
    try {
      choose(resume, name);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), code);
      return error.what();
    }
    return "not refused";
  }

  TemporaryDirectory directory_;
  Log log_{false, "test"};
};

TEST_F(ChooseCheckpoint, OfARunWithoutCheckpoints) {
  EXPECT_EQ(choose("auto"), std::nullopt);
  EXPECT_EQ(choose("none"), std::nullopt);
  EXPECT_NE(refusal("must", ExitCode::usage).find("has no checkpoint"), std::string::npos);
  EXPECT_NE(refusal(run("run").string(), ExitCode::usage).find("no such directory"), std::string::npos);
}

TEST_F(ChooseCheckpoint, TheNewestIntactOne) {
  const fs::path first = save("run", 9), second = save("run", 10);
  EXPECT_EQ(choose("auto"), second);
  EXPECT_EQ(choose("must"), second);
  EXPECT_EQ(choose(run("run").string()), second);
  EXPECT_NE(refusal("none", ExitCode::usage).find("has checkpoints"), std::string::npos);

  damage(second);
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(choose("auto"), first);
  EXPECT_EQ(choose(run("run").string()), first);
  EXPECT_NE(::testing::internal::GetCapturedStderr().find("step_00000010"), std::string::npos);

  damage(first);
  for (const std::string& resume : {std::string("auto"), std::string("must"), run("run").string()}) {
    EXPECT_NE(refusal(resume, ExitCode::failure).find("every checkpoint"), std::string::npos) << resume;
  }
}

TEST_F(ChooseCheckpoint, APathNeverMixesTwoHistories) {
  const fs::path old = save("run", 1), newest = save("run", 2), other = save("other", 3);
  EXPECT_EQ(choose(newest.string()), newest);
  EXPECT_NE(refusal(old.string(), ExitCode::usage).find("goes on from step_00000002"), std::string::npos);
  EXPECT_NE(refusal(other.string(), ExitCode::usage).find("goes on from step_00000002"), std::string::npos);
  EXPECT_NE(refusal(run("other").string(), ExitCode::usage).find("goes on from step_00000002"), std::string::npos);
  EXPECT_EQ(choose(old.string(), "new"), old);
  EXPECT_EQ(choose(run("run").string(), "new"), newest);
}

using Values = std::vector<std::pair<std::string, std::string>>;
const Values kThen = {{"model.layers", "4"}, {"train.batch", "8"}, {"optimizer.lr", "0.001"}, {"log.every", ""}};

std::string refusal(const Values& now, const std::vector<std::string>& overrides = {}) {
  try {
    compare_options(kThen, now, overrides);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    return error.what();
  }
  return "not refused";
}

TEST(CompareOptions, FreeKeysAreReported) {
  EXPECT_TRUE(compare_options(kThen, kThen, {}).empty());
  EXPECT_EQ(compare_options(kThen, {{"log.every", "5"}, {"log.new", "1"}}, {}),
            std::vector<std::string>{"log.every: (none) → 5"});
}

TEST(CompareOptions, ScheduleKeysNeedAnOverrideEach) {
  const Values now = {{"model.layers", "4"}, {"train.batch", "16"}, {"optimizer.lr", "0.1"}};
  EXPECT_NE(refusal(now).find("train.batch: 8 → 16; optimizer.lr: 0.001 → 0.1"), std::string::npos);
  const std::string one = refusal(now, {"train.batch"});
  EXPECT_NE(one.find("optimizer.lr"), std::string::npos);
  EXPECT_EQ(one.find("train.batch"), std::string::npos);
  EXPECT_EQ(compare_options(kThen, now, {"train.batch", "optimizer.lr"}).size(), 2u);
}

TEST(CompareOptions, TheModelIsNeverOverridden) {
  EXPECT_NE(refusal({{"model.layers", "5"}}, {"model.layers"}).find("model.layers: 4 → 5"), std::string::npos);
}

TEST(CheckOverrides, KnowsTheKeysThatNeedOne) {
  EXPECT_NO_THROW(check_overrides(kThen, {"train.batch", "optimizer.lr"}));
  EXPECT_NO_THROW(check_overrides(kThen, {}));
  for (const char* key : {"log.every", "model.layers", "optimizer.rl", ""})
    EXPECT_THROW(check_overrides(kThen, {key}), Error) << key;
}

TEST(RunRecord, RoundTripsAndNamesWhatIsMissing) {
  RunRecord record;
  record.options = {{"a.b", "1"}, {"c.d", ""}};
  record.data.files = {{"x.jsonl", 5, "00ff"}};
  record.data.tokenizer = "bytes";
  record.data_state.tokens = 77;
  record.updates = 9;
  record.nonfinite_steps = 2;
  record.grid = "data 1 × tensor 1";
  record.build = "a build";
  const nlohmann::json json = to_metadata(record);
  EXPECT_EQ(to_metadata(from_metadata(json, "m")), json);
  EXPECT_EQ(from_metadata(json, "m").data_state, record.data_state);
  for (const auto& [key, value] : json.items()) {
    nlohmann::json less = json, other = json;
    less.erase(key);
    other[key] = true;
    EXPECT_THROW(from_metadata(less, "m"), Error) << key;
    EXPECT_THROW(from_metadata(other, "m"), Error) << key;
  }
}

}  // namespace
}  // namespace dm
