// Checkpoints of one process: round trips, replacement, retention, and what is refused.
#include "parallel/checkpoint.h"

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "parallel/checkpoint_directory.h"
#include "runtime/fault.h"
#include "runtime/log.h"
#include "tests/parallel/toy_state.h"
#include "tests/testing/temporary_directory.h"

namespace dm {
namespace {

namespace fs = std::filesystem;

class Checkpoints : public ::testing::Test {
 protected:
  fs::path save(int step, int version = 0, const nlohmann::json& metadata = nlohmann::json::object()) {
    FaultInjector none;
    return save_checkpoint(*self_, directory_.path(), step, ToyState::owned(0, 1, 0, 1, 0, version).pieces(), metadata,
                           none);
  }
  std::int64_t differences(const fs::path& path, int version) {
    const ToyState state = ToyState::wanted(0, 1);
    Checkpoint::open(path).load(state.pieces());
    return state.differences(version);
  }
  static void flip(const fs::path& file, std::size_t at) {
    set_byte(file, at, static_cast<char>(bytes_of_file(file).at(at) ^ 1));
  }
  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const fs::path& path : list_checkpoints(directory_.path())) all.push_back(path.filename().string());
    return all;
  }

  TemporaryDirectory directory_;
  std::unique_ptr<Communicator> self_ = make_self_communicator();
  Log log_{false, "test"};
};

using Names = std::vector<std::string>;

TEST_F(Checkpoints, RoundTripIsBitwiseAndKeepsTheMetadata) {
  const nlohmann::json metadata{{"config", {{"model.layers", 24}}}, {"note", "caf\u00e9"}};
  const fs::path path = save(1000, 3, metadata);
  EXPECT_EQ(path, directory_.path() / "step_00001000");
  const Checkpoint checkpoint = Checkpoint::open(path);
  EXPECT_EQ(checkpoint.step(), 1000);
  EXPECT_EQ(checkpoint.metadata(), metadata);
  EXPECT_TRUE(checkpoint.verify().empty());
  EXPECT_EQ(differences(path, 3), 0);
  EXPECT_NE(differences(path, 4), 0);
  EXPECT_EQ(read_latest(directory_.path()), "step_00001000");
}

TEST_F(Checkpoints, NanAndSignedZeroKeepTheirBits) {
  const std::uint32_t bits[4] = {0x7fc12345u, 0xffc00001u, 0x80000000u, 0x00000001u};
  std::vector<float> values(4), loaded(4, 1.0f);
  std::memcpy(values.data(), bits, sizeof bits);
  FaultInjector none;
  const auto piece = [](std::vector<float>& data) {
    return std::vector<StatePiece>{{"p", StateKind::value, {4}, {0, 0, 4, 1}, Tensor::of(data.data(), {4})}};
  };
  const fs::path path = save_checkpoint(*self_, directory_.path(), 1, piece(values), nlohmann::json::object(), none);
  Checkpoint::open(path).load(piece(loaded));
  EXPECT_EQ(std::memcmp(loaded.data(), bits, sizeof bits), 0);
}

TEST_F(Checkpoints, ContentDoesNotDependOnWhereItLies) {
  const fs::path path = save(7, 1);
  TemporaryDirectory elsewhere;
  fs::rename(path, elsewhere.path() / "copy");
  EXPECT_EQ(differences(elsewhere.path() / "copy", 1), 0);
  EXPECT_EQ(bytes_of_file(elsewhere.path() / "copy" / "manifest.json").find(directory_.path().string()), std::string::npos);
}

TEST_F(Checkpoints, SavingAStepAgainReplacesIt) {
  save(5, 1);
  const fs::path path = save(5, 2);
  EXPECT_EQ(differences(path, 2), 0);
  EXPECT_EQ(names(), Names{"step_00000005"});
  EXPECT_EQ(snapshot(directory_.path()).count("step_00000005.replaced"), 0u);
}

TEST_F(Checkpoints, ACheckpointPutAsideByAnInterruptedReplacementComesBack) {
  const fs::path path = save(5, 1);
  const CheckpointPaths paths(directory_.path(), 5);
  fs::rename(paths.final, paths.replaced);
  fs::create_directory(paths.partial);
  write_bytes(directory_.path() / "latest.partial", "x");
  write_bytes(directory_.path() / "notes.partial", "not ours");
  remove_partial_checkpoints(directory_.path(), log_);
  EXPECT_EQ(newest_intact_checkpoint(directory_.path(), log_), path);
  EXPECT_FALSE(fs::exists(paths.partial));
  EXPECT_FALSE(fs::exists(directory_.path() / "latest.partial"));
  EXPECT_TRUE(fs::exists(directory_.path() / "notes.partial"));

  fs::create_directory(paths.replaced);  // the new one stands: the old one goes
  remove_partial_checkpoints(directory_.path(), log_);
  EXPECT_FALSE(fs::exists(paths.replaced));
  EXPECT_EQ(differences(path, 1), 0);
}

TEST_F(Checkpoints, LoadRefusesWhatIsNotThere) {
  const Checkpoint checkpoint = Checkpoint::open(save(1));
  std::vector<float> memory(200);
  const auto message_of = [&](const std::string& name, Shape shape, Rectangle where, std::int64_t elements) -> std::string {
    try {
      checkpoint.load({{name, StateKind::value, shape, where, Tensor::of(memory.data(), {elements})}});
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message_of("other.weight", {2}, {0, 0, 2, 1}, 2).find("holds no value of parameter other.weight"),
            std::string::npos);
  EXPECT_NE(message_of("norm.weight", {8}, {0, 0, 8, 1}, 8).find("has the shape [7], not [8]"), std::string::npos);
  EXPECT_NE(message_of("norm.weight", {7}, {0, 0, 8, 1}, 8).find("outside its shape"), std::string::npos);
  EXPECT_NE(message_of("norm.weight", {7}, {0, 0, 7, 1}, 6).find("a piece of 7 elements"), std::string::npos);
  EXPECT_EQ(message_of("norm.weight", {7}, {2, 0, 3, 1}, 3), "");
}

TEST_F(Checkpoints, ListIsNewestFirstAndKnowsNamesExactly) {
  for (const char* name : {"step_00000002", "step_00000010", "step_123456789", "step_3", "step_00000004.partial",
                           "step_000000011", "step_0000000x", "other"}) {
    fs::create_directory(directory_.path() / name);
  }
  write_bytes(directory_.path() / "step_00000099", "a file");
  EXPECT_EQ(names(), (Names{"step_123456789", "step_00000010", "step_00000002"}));
  EXPECT_TRUE(list_checkpoints(directory_.path() / "absent").empty());
  EXPECT_FALSE(newest_intact_checkpoint(directory_.path() / "absent", log_));
}

TEST_F(Checkpoints, NewestIntactSkipsDamagedOnesAndSaysWhichTensor) {
  save(1);
  save(2);
  const fs::path damaged = save(3);
  flip(damaged / "shard_0.safetensors", bytes_of_file(damaged / "shard_0.safetensors").size() - 1);
  fs::rename(directory_.path() / "step_00000002", directory_.path() / "step_00000004");  // claims another step
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(newest_intact_checkpoint(directory_.path(), log_), directory_.path() / "step_00000001");
  const std::string warning = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(warning.find("shard_0.safetensors: damaged: tensor norm.weight/second_moment/0,0"), std::string::npos)
      << warning;
  EXPECT_NE(warning.find("the manifest is of step 2"), std::string::npos) << warning;
}

TEST_F(Checkpoints, ADamagedOrDanglingLatestIsReportedAndIgnored) {
  const fs::path path = save(1);
  const auto warning = [&] {
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(newest_intact_checkpoint(directory_.path(), log_), path);
    return ::testing::internal::GetCapturedStderr();
  };
  EXPECT_EQ(warning(), "");
  flip(directory_.path() / "latest", 50);
  EXPECT_NE(warning().find("latest: damaged"), std::string::npos);
  FaultInjector none;
  write_latest(directory_.path(), "step_00000009", none);
  EXPECT_NE(warning().find("step_00000009 does not exist"), std::string::npos);
}

TEST_F(Checkpoints, RetentionKeepsTheNewestAndTheMilestones) {
  for (int step = 1; step <= 7; ++step) save(step * 10);
  retain_checkpoints(directory_.path(), 2, 30, log_);
  EXPECT_EQ(names(), (Names{"step_00000070", "step_00000060", "step_00000030"}));
  retain_checkpoints(directory_.path(), 0, 0, log_);
  EXPECT_EQ(names(), Names{"step_00000070"});
}

TEST_F(Checkpoints, RetentionNeverRemovesTheLastIntactOne) {
  for (int step = 1; step <= 4; ++step) save(step);
  const auto file = [&](int step, const char* name) { return CheckpointPaths(directory_.path(), step).final / name; };
  flip(file(4, "shard_0.safetensors"), bytes_of_file(file(4, "shard_0.safetensors")).size() / 2);
  flip(file(3, "manifest.json"), 200);
  ::testing::internal::CaptureStderr();
  retain_checkpoints(directory_.path(), 1, 0, log_);
  const std::string warning = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(warning.find("step_00000004 is damaged"), std::string::npos) << warning;
  EXPECT_EQ(names(), (Names{"step_00000004", "step_00000003", "step_00000002"}));
  EXPECT_EQ(differences(directory_.path() / "step_00000002", 0), 0);

  fs::remove_all(file(2, "shard_0.safetensors"));  // now none is intact: nothing may go
  retain_checkpoints(directory_.path(), 1, 0, log_);
  EXPECT_EQ(names().size(), 3u);
}

}  // namespace
}  // namespace dm
