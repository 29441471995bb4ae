// A checkpoint damaged in every byte, cut at every kind of place, and a process killed or failing at every point of a save.
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "parallel/checkpoint.h"
#include "parallel/checkpoint_directory.h"
#include "parallel/manifest.h"
#include "runtime/fault.h"
#include "runtime/log.h"
#include "runtime/safetensors.h"
#include "tests/parallel/toy_state.h"
#include "tests/testing/mutate.h"
#include "tests/testing/temporary_directory.h"

namespace dm {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kSavePoints{"save:before_files", "save:half_shard", "save:after_shards", "save:before_rename",
                                           "save:before_latest"};

class CheckpointFaults : public ::testing::Test {
 protected:
  fs::path save(int step, int version, const std::string& fault = "") {
    FaultInjector faults(fault.empty() ? "" : "rank=0,step=" + std::to_string(step) + "," + fault, 0);
    faults.set_step(step);
    return save_checkpoint(*self_, directory_.path(), step, ToyState::owned(0, 1, 0, 1, 0, version).pieces(),
                           {{"version", version}}, faults);
  }
  std::int64_t differences(const fs::path& path, int version) {
    const ToyState state = ToyState::wanted(0, 1);
    Checkpoint::open(path).load(state.pieces());
    return state.differences(version);
  }
  /// Runs `work` in a child process and returns its wait status; the child leaves with 0 when work returns.
  static int in_child(const std::function<void()>& work) {
    const pid_t child = ::fork();
    if (child == 0) {
      try {
        work();
      } catch (const Error& error) {
        std::fprintf(stderr, "%s\n", error.what());
        ::_exit(1);
      }
      ::_exit(0);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(child, &status, 0), child);
    return status;
  }
  void expect_only_whole_checkpoints() {
    for (const auto& entry : fs::directory_iterator(directory_.path())) {
      const std::string name = entry.path().filename().string();
      EXPECT_TRUE(name == "latest" || step_of_name(name)) << name;
    }
  }

  TemporaryDirectory directory_;
  std::unique_ptr<Communicator> self_ = make_self_communicator();
  Log log_{false, "test"};
};

/// Two small tensors, so that every byte can be flipped in a moment.
fs::path save_small(const fs::path& directory) {
  static float a[6] = {1, 2, 3, 4, 5, 6};
  static float b[3] = {-1, -2, -3};
  FaultInjector none;
  const std::vector<StatePiece> pieces{{"a", StateKind::value, {2, 3}, {0, 0, 2, 3}, Tensor::of(a, {6})},
                                       {"b", StateKind::value, {3}, {0, 0, 1, 1}, Tensor::of(b, {1})},
                                       {"b", StateKind::value, {3}, {1, 0, 2, 1}, Tensor::of(b + 1, {2})}};
  const auto self = make_self_communicator();
  return save_checkpoint(*self, directory, 12, pieces, {{"lr", 1e-3}, {"data", {{"epoch", 0}}}}, none);
}

void load_small(const Checkpoint& checkpoint) {
  float a[6], b[3];
  checkpoint.load({{"a", StateKind::value, {2, 3}, {0, 0, 2, 3}, Tensor::of(a, {6})},
                   {"b", StateKind::value, {3}, {0, 0, 3, 1}, Tensor::of(b, {3})}});
}

TEST_F(CheckpointFaults, EveryFlippedBitOfAShardIsFoundAndNamed) {
  const fs::path path = save_small(directory_.path());
  const fs::path file = path / "shard_0.safetensors";
  const std::string good = bytes_of_file(file);
  const SafetensorsFile shard = SafetensorsFile::open(file);
  const Checkpoint checkpoint = Checkpoint::open(path);
  ASSERT_TRUE(checkpoint.verify().empty());
  load_small(checkpoint);
  for (std::size_t at = 0; at < good.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      set_byte(file, at, static_cast<char>(good[at] ^ (1 << bit)));
      const std::vector<Damage> damage = checkpoint.verify();
      ASSERT_EQ(damage.size(), 1u) << "byte " << at << ", bit " << bit;
      EXPECT_EQ(damage[0].file, "shard_0.safetensors");
      for (const SafetensorsEntry& entry : shard.entries()) {
        const auto offset = static_cast<std::int64_t>(at);
        if (offset < entry.offset || offset >= entry.offset + entry.bytes) continue;
        EXPECT_NE(damage[0].message.find("tensor " + entry.name + ","), std::string::npos) << damage[0].message;
        EXPECT_NE(damage[0].message.find("at byte " + std::to_string(entry.offset)), std::string::npos) << damage[0].message;
      }
      EXPECT_THROW(load_small(checkpoint), Error) << "byte " << at;
    }
    set_byte(file, at, good[at]);
  }
}

TEST_F(CheckpointFaults, EveryFlippedBitOfManifestAndLatestIsFound) {
  const fs::path path = save_small(directory_.path());
  const auto flip_all = [](const fs::path& file, const std::function<void()>& read) {
    const std::string good = bytes_of_file(file);
    read();
    for (std::size_t at = 0; at < good.size(); ++at) {
      for (int bit = 0; bit < 8; ++bit) {
        set_byte(file, at, static_cast<char>(good[at] ^ (1 << bit)));
        try {
          read();
          ADD_FAILURE() << file << ": byte " << at << ", bit " << bit << " went unnoticed";
        } catch (const Error& error) {
          EXPECT_NE(std::string(error.what()).find(file.string()), std::string::npos) << error.what();
        }
      }
      set_byte(file, at, good[at]);
    }
    read();
  };
  flip_all(path / "manifest.json", [&] { Checkpoint::open(path); });
  flip_all(directory_.path() / "latest", [&] { read_latest(directory_.path()); });
}

TEST_F(CheckpointFaults, EveryTruncationAndEveryExtensionIsFound) {
  const fs::path path = save_small(directory_.path());
  const Checkpoint checkpoint = Checkpoint::open(path);
  const fs::path shard = path / "shard_0.safetensors";
  const std::string good = bytes_of_file(shard);
  for (std::size_t size = 0; size < good.size(); ++size) {
    write_bytes(shard, good.substr(0, size));
    ASSERT_FALSE(checkpoint.verify().empty()) << size;
    EXPECT_FALSE(checkpoint.verify_files().empty()) << size;
    try {
      load_small(checkpoint);
      ADD_FAILURE() << size;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("; tensor "), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(" is cut"), std::string::npos) << error.what();
    }
  }
  write_bytes(shard, good + "x");
  EXPECT_FALSE(checkpoint.verify().empty());
  EXPECT_THROW(load_small(checkpoint), Error);
  fs::remove(shard);
  EXPECT_FALSE(checkpoint.verify().empty());
  EXPECT_THROW(load_small(checkpoint), Error);

  const std::string manifest = bytes_of_file(path / "manifest.json");
  for (std::size_t size = 0; size < manifest.size(); ++size) {
    write_bytes(path / "manifest.json", manifest.substr(0, size));
    EXPECT_THROW(Checkpoint::open(path), Error) << size;
  }
  fs::remove(path / "manifest.json");
  EXPECT_THROW(Checkpoint::open(path), Error);
}

TEST_F(CheckpointFaults, KillAtEveryPointOfASaveLosesNothing) {
  for (const std::string& point : kSavePoints) {
    SCOPED_TRACE(point);
    fs::remove_all(directory_.path());
    fs::create_directory(directory_.path());
    const fs::path previous = save(1, 1);
    const int status = in_child([&] { save(2, 2, "point=" + point + ",fault=kill"); });
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);

    // From the rename on the new checkpoint is whole and visible; before it nothing of it is.
    const bool renamed = point == "save:before_latest";
    const fs::path newest = renamed ? directory_.path() / "step_00000002" : previous;
    EXPECT_EQ(newest_intact_checkpoint(directory_.path(), log_), newest);
    remove_partial_checkpoints(directory_.path(), log_);
    expect_only_whole_checkpoints();
    EXPECT_EQ(newest_intact_checkpoint(directory_.path(), log_), newest);
    EXPECT_EQ(differences(newest, renamed ? 2 : 1), 0);
    EXPECT_EQ(differences(previous, 1), 0);
    EXPECT_EQ(differences(save(2, 3), 3), 0);
  }
}

TEST_F(CheckpointFaults, KillWhileAStepIsReplacedKeepsOneOfTheTwo) {
  for (const std::string& point : kSavePoints) {
    SCOPED_TRACE(point);
    fs::remove_all(directory_.path());
    fs::create_directory(directory_.path());
    const fs::path path = save(1, 1);
    const int status = in_child([&] { save(1, 2, "point=" + point + ",fault=kill"); });
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    remove_partial_checkpoints(directory_.path(), log_);
    expect_only_whole_checkpoints();
    EXPECT_EQ(newest_intact_checkpoint(directory_.path(), log_), path);
    EXPECT_EQ(differences(path, point == "save:before_latest" ? 2 : 1), 0);
  }
}

TEST_F(CheckpointFaults, AFailingSaveLeavesEverythingAsItWas) {
  save(1, 1);
  save(2, 1);
  const auto before = snapshot(directory_.path());
  std::vector<std::string> requests{"point=save:write,fault=disk_full", "point=save:write,fault=short_write",
                                    "point=save:fsync,fault=fsync", "point=save:close,fault=close"};
  for (const std::string& point : kSavePoints) requests.push_back("point=" + point + ",fault=error");
  for (const std::string& request : requests) {
    for (int step : {2, 3}) {  // replacing a checkpoint, and making a new one
      SCOPED_TRACE(request + " at step " + std::to_string(step));
      EXPECT_THROW(save(step, 2, request), Error);
      EXPECT_EQ(snapshot(directory_.path()), before);
    }
  }
  EXPECT_EQ(differences(save(3, 2), 2), 0);
}

TEST_F(CheckpointFaults, AFailureAfterTheRenameTakesTheRenameBack) {
  save(1, 1);
  fs::remove(directory_.path() / "latest");
  fs::create_directory(directory_.path() / "latest");  // no file can be renamed onto it
  write_bytes(directory_.path() / "latest" / "x", "x");
  const auto before = snapshot(directory_.path());
  for (int step : {1, 2}) {
    EXPECT_THROW(save(step, 2), Error);
    EXPECT_EQ(snapshot(directory_.path()), before);
  }
}

TEST_F(CheckpointFaults, ARealFileSizeLimitIsAnErrorWithTheFilesName) {
  save(1, 1);
  const auto before = snapshot(directory_.path());
  ::testing::internal::CaptureStderr();
  const int status = in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1000, 1000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    save(2, 2);
  });
  const std::string message = ::testing::internal::GetCapturedStderr();
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1);
  EXPECT_NE(message.find("shard_0.safetensors: File too large"), std::string::npos) << message;
  EXPECT_EQ(snapshot(directory_.path()), before);
}

TEST_F(CheckpointFaults, NoMutatedManifestOrLatestIsBelieved) {
  const fs::path path = save_small(directory_.path());
  const std::string manifest = bytes_of_file(path / "manifest.json");
  const std::string latest = bytes_of_file(directory_.path() / "latest");
  std::mt19937 random(1);
  for (int i = 0; i < 3000; ++i) {
    const std::string bad = mutate(manifest, random);
    if (bad == manifest) continue;
    EXPECT_THROW(unseal(bad, "manifest"), Error);
  }
  for (int i = 0; i < 3000; ++i) {
    const std::string bad = mutate(latest, random);
    if (bad == latest) continue;
    write_bytes(directory_.path() / "latest", bad);
    EXPECT_THROW(read_latest(directory_.path()), Error) << bad;
  }
}

// A manifest whose own hash fits and whose content does not: only Error may come out, and whatever opens can be verified.
TEST_F(CheckpointFaults, MutatedAndSealedAgainAManifestOpensOrFailsCleanly) {
  const fs::path path = save_small(directory_.path());
  const std::string sealed = bytes_of_file(path / "manifest.json");
  const std::string body(unseal(sealed, "manifest"));
  std::mt19937 random(2);
  int opened = 0;
  for (int i = 0; i < 6000; ++i) {
    write_bytes(path / "manifest.json", seal(mutate(body, random)));
    try {
      const Checkpoint checkpoint = Checkpoint::open(path);
      ++opened;
      checkpoint.verify();
      load_small(checkpoint);
    } catch (const Error&) {
    }
  }
  EXPECT_GT(opened, 0);
}

}  // namespace
}  // namespace dm
