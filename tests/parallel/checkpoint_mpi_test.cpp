// Checkpoints of several ranks: saved on one grid and loaded on others, and failures of one rank known to all.
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "parallel/agreement.h"
#include "parallel/checkpoint.h"
#include "parallel/communicator.h"
#include "runtime/fault.h"
#include "runtime/log.h"
#include "runtime/safetensors.h"
#include "tests/parallel/toy_state.h"
#include "tests/testing/temporary_directory.h"

namespace dm {
namespace {

namespace fs = std::filesystem;

/// The world, and a directory that all its ranks see.
class SharedCheckpoints : public ::testing::Test {
 protected:
  SharedCheckpoints() : world_(make_mpi_communicator()) {
    if (world_->rank() == 0) owner_ = std::make_unique<TemporaryDirectory>();
    directory_ = broadcast_text(*world_, owner_ ? owner_->path().string() : "", 0);
  }
  ~SharedCheckpoints() override { barrier(); }

  void barrier() {
    Stream stream(Device::cpu());
    world_->barrier(stream);
  }
  std::vector<std::pair<int, int>> grids() const {  // data × tensor; the toy's shapes divide by 1, 2 and 4
    std::vector<std::pair<int, int>> all;
    for (int tensor = 1; tensor <= world_->size(); tensor *= 2) all.emplace_back(world_->size() / tensor, tensor);
    return all;
  }
  ToyState owned(std::pair<int, int> grid, unsigned seed, int version) const {
    return ToyState::owned(world_->rank() / grid.second, grid.first, world_->rank() % grid.second, grid.second, seed,
                           version);
  }
  fs::path save(const ToyState& state, int step, FaultInjector& faults) {
    faults.set_step(step);
    return save_checkpoint(*world_, directory_, step, state.pieces(), {{"note", "toy"}}, faults);
  }

  std::unique_ptr<Communicator> world_;
  std::unique_ptr<TemporaryDirectory> owner_;
  fs::path directory_;
};

TEST_F(SharedCheckpoints, SavedOnOneGridLoadsOnEveryOther) {
  int step = 0;
  for (const auto& grid : grids()) {
    for (unsigned seed = 0; seed < 4; ++seed) {
      ++step;
      FaultInjector none;
      const fs::path path = save(owned(grid, seed, step), step, none);
      const Checkpoint checkpoint = Checkpoint::open(path);
      EXPECT_EQ(checkpoint.step(), step);
      EXPECT_TRUE(checkpoint.verify().empty());
      for (int tensor_size : {1, 2, 4}) {
        ToyState wanted = ToyState::wanted(world_->rank() % tensor_size, tensor_size);
        checkpoint.load(wanted.pieces());
        EXPECT_EQ(wanted.differences(step), 0);
      }
      for (const auto& other : grids()) {
        ToyState slice = owned(other, seed + 100, -1);
        checkpoint.load(slice.pieces());
        EXPECT_EQ(slice.differences(step), 0);
      }
    }
  }
}

TEST_F(SharedCheckpoints, ShardsAreSafetensorsFilesThatAgreeWithTheManifest) {
  FaultInjector none;
  const fs::path path = save(owned(grids().back(), 3, 0), 5, none);
  const Checkpoint checkpoint = Checkpoint::open(path);
  const nlohmann::json& manifest = checkpoint.manifest();
  for (const auto& piece : manifest["pieces"]) {
    const std::string file = manifest["files"][piece["file"].get<std::size_t>()]["name"];
    const SafetensorsFile shard = SafetensorsFile::open(path / file);
    const std::string name = piece["parameter"].get<std::string>() + "/" + piece["kind"].get<std::string>() + "/" +
                             std::to_string(piece["row"].get<int>()) + "," + std::to_string(piece["column"].get<int>());
    const SafetensorsEntry& entry = shard.find(name);
    EXPECT_EQ(entry.offset, piece["offset"].get<std::int64_t>());
    EXPECT_EQ(entry.bytes, piece["bytes"].get<std::int64_t>());
    EXPECT_EQ(entry.shape, (Shape{piece["rows"].get<std::int64_t>(), piece["columns"].get<std::int64_t>()}));
  }
}

TEST_F(SharedCheckpoints, FailureOfAnyRankIsEveryRanksErrorAndLeavesNoTrace) {
  const auto grid = grids().front();
  FaultInjector none;
  save(owned(grid, 7, 1), 1, none);
  barrier();
  const auto before = snapshot(directory_);
  const std::vector<std::string> requests{
      "save:before_files,fault=error",  "save:half_shard,fault=error",    "save:after_shards,fault=error",
      "save:before_rename,fault=error", "save:before_latest,fault=error", "save:write,fault=disk_full",
      "save:write,fault=short_write",   "save:fsync,fault=fsync",         "save:close,fault=close"};
  for (int culprit = 0; culprit < world_->size(); ++culprit) {
    for (const std::string& request : requests) {
      barrier();
      FaultInjector faults("rank=" + std::to_string(culprit) + ",step=2,point=" + request, world_->rank());
      try {
        save(owned(grid, 7, 2), 2, faults);
        ADD_FAILURE() << request << " went unnoticed";
      } catch (const Error& error) {
        const std::string message = error.what();
        EXPECT_NE(message.find("rank " + std::to_string(culprit) + " on "), std::string::npos) << message;
        EXPECT_EQ(error.code(), ExitCode::retryable) << message;
        if (request.find("error") == std::string::npos && culprit != 0) {
          EXPECT_NE(message.find("shard_" + std::to_string(culprit) + ".safetensors"), std::string::npos) << message;
        }
      }
      EXPECT_EQ(snapshot(directory_), before) << request << " of rank " << culprit;
    }
  }
  barrier();
  save(owned(grid, 7, 2), 2, none);
  EXPECT_EQ(*newest_intact_checkpoint(directory_, Log(false, "test")), directory_ / "step_00000002");
}

TEST_F(SharedCheckpoints, RankZeroWithoutPiecesFailsOnTheManifest) {
  ToyState all = ToyState::owned(0, 1, 0, 1, 0, 4);
  if (world_->rank() != 1) all.pieces().clear();
  for (const char* fault : {"save:write,fault=disk_full", "save:close,fault=close"}) {
    FaultInjector faults(std::string("rank=0,step=2,point=") + fault, world_->rank());
    try {
      save(all, 2, faults);
      ADD_FAILURE() << fault << " went unnoticed";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("manifest.json"), std::string::npos) << error.what();
    }
    EXPECT_TRUE(snapshot(directory_).empty());
    barrier();
  }
  FaultInjector none;
  const Checkpoint checkpoint = Checkpoint::open(save(all, 2, none));
  EXPECT_EQ(checkpoint.manifest()["files"].size(), 1u);
}

TEST_F(SharedCheckpoints, PiecesThatDoNotTileAreRefusedByName) {
  const auto grid = grids().front();
  FaultInjector none;
  const auto message_of = [&](const ToyState& state) -> std::string {
    try {
      save(state, 3, none);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const bool has_all = world_->rank() == world_->size() - 1;
  ToyState missing = ToyState::owned(0, 1, 0, 1, 5);
  if (!has_all) missing.pieces().clear();
  if (has_all) missing.pieces().pop_back();
  std::string message = message_of(missing);
  EXPECT_NE(message.find("norm.weight (second_moment) is stored by nobody"), std::string::npos) << message;

  ToyState short_of_a_row = ToyState::owned(0, 1, 0, 1, 5);
  if (!has_all) short_of_a_row.pieces().clear();
  if (has_all) {
    StatePiece& piece = short_of_a_row.pieces().front();
    piece.where.rows -= 1;
    piece.data = piece.data.flat(0, piece.where.numel());
  }
  message = message_of(short_of_a_row);
  EXPECT_NE(message.find("embedding.weight (value): 5 of its 60 elements"), std::string::npos) << message;

  ToyState twice = ToyState::owned(0, 1, 0, 1, 5);
  if (world_->rank() > 0) twice.pieces().resize(1);
  message = message_of(twice);
  EXPECT_NE(message.find("embedding.weight"), std::string::npos) << message;
  EXPECT_NE(message.find("stored twice"), std::string::npos) << message;

  ToyState steps = owned(grid, 1, 0);
  EXPECT_THROW(save_checkpoint(*world_, directory_, 10 + world_->rank(), steps.pieces(), nlohmann::json::object(), none),
               Error);
  EXPECT_TRUE(snapshot(directory_).empty());
}

TEST_F(SharedCheckpoints, AgreementNamesTheLowestFailingRankAndKeepsItsExitCode) {
  int undone = 0;
  try {
    run_on_all(
        *world_, "trying",
        [&] {
          if (world_->rank() >= 1) fail("no luck " + std::to_string(world_->rank()), ExitCode::usage);
        },
        [&] { ++undone; });
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_TRUE(std::string(error.what()).starts_with("trying: rank 1 on ")) << error.what();
    EXPECT_TRUE(std::string(error.what()).ends_with(": no luck 1")) << error.what();
    EXPECT_EQ(error.code(), ExitCode::usage);
  }
  EXPECT_EQ(undone, 1);

  const auto texts = gather_texts(*world_, std::string(static_cast<std::size_t>(world_->rank()), 'x'));
  ASSERT_EQ(static_cast<int>(texts.size()), world_->size());
  for (std::size_t r = 0; r < texts.size(); ++r) EXPECT_EQ(texts[r], std::string(r, 'x'));
}

/// The two jobs of checkpoint_kill_test.py: the first is killed in the middle, once for each point and rank, each time in
/// another directory; the second checks what is left in all of them.
class KilledSave : public ::testing::Test {
 protected:
  KilledSave() : world_(make_mpi_communicator()), directory_(std::getenv("CHECKPOINT_DIRECTORY")) {}
  fs::path save(const fs::path& directory, int step, int version, FaultInjector& faults) {
    faults.set_step(step);
    const ToyState state = ToyState::owned(world_->rank(), world_->size(), 0, 1, 7, version);
    return save_checkpoint(*world_, directory, step, state.pieces(), nlohmann::json::object(), faults);
  }
  std::unique_ptr<Communicator> world_;
  fs::path directory_;
};

TEST_F(KilledSave, DISABLED_Save) {
  FaultInjector faults(std::getenv("CHECKPOINT_INJECT"), world_->rank());
  save(directory_, 1, 1, faults);
  save(directory_, 2, 2, faults);
}

TEST_F(KilledSave, DISABLED_CheckAndSaveAgain) {
  const Log log(false, "test");
  for (const auto& job : fs::directory_iterator(directory_)) {
    SCOPED_TRACE(job.path());
    std::string newest;
    if (world_->rank() == 0) {
      newest = newest_intact_checkpoint(job.path(), log).value_or("").string();
      remove_partial_checkpoints(job.path(), log);
      EXPECT_EQ(newest_intact_checkpoint(job.path(), log).value_or("").string(), newest);
    }
    newest = broadcast_text(*world_, newest, 0);
    const bool renamed = job.path().stem() == "before_latest";
    EXPECT_EQ(fs::path(newest).filename(), renamed ? "step_00000002" : "step_00000001");

    const Checkpoint checkpoint = Checkpoint::open(newest);
    const ToyState state = ToyState::wanted(0, 1);
    checkpoint.load(state.pieces());
    EXPECT_EQ(state.differences(static_cast<int>(checkpoint.step())), 0);

    FaultInjector none;
    EXPECT_TRUE(Checkpoint::open(save(job.path(), 2, 3, none)).verify().empty());
    for (const auto& entry : fs::directory_iterator(job.path())) {
      const std::string name = entry.path().filename().string();
      EXPECT_TRUE(name == "latest" || name == "step_00000001" || name == "step_00000002") << name;
    }
  }
}

}  // namespace
}  // namespace dm
