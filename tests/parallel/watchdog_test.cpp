// The watchdog of a single rank: when it speaks and when it does not.
#include "parallel/watchdog.h"

#include <unistd.h>
#include <chrono>
#include <future>

#include <gtest/gtest.h>

namespace dm {
namespace {

class WatchdogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "watchdog_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  void start(Watchdog& watchdog, double timeout_seconds) {
    watchdog.start(*world_, directory_ / "board", timeout_seconds, Log(false, "rank 0 (here)"),
                   [this](int exit_code) { ended_.set_value(exit_code); });
  }
  RankStatus row() const { return StatusBoard::open(directory_ / "board", 1).read()[0]; }

  std::filesystem::path directory_;
  std::unique_ptr<Communicator> world_ = make_self_communicator();
  std::promise<int> ended_;
};

TEST_F(WatchdogTest, EndsTheJobWhenACollectiveTakesTooLong) {
  Watchdog watchdog;
  start(watchdog, 0.1);
  watchdog.set_step(12);
  watchdog.set_phase("backward");
  ::testing::internal::CaptureStderr();
  watchdog.entered("all_reduce", "tensor", 64);
  EXPECT_EQ(ended_.get_future().get(), static_cast<int>(ExitCode::retryable));
  const std::string text = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(text.find("rank 0 (here): watchdog: waited "), 0u) << text;
  EXPECT_NE(text.find("in all_reduce of group tensor"), std::string::npos) << text;
  EXPECT_NE(text.find("backward"), std::string::npos) << text;
  EXPECT_NE(text.find("culprit: "), std::string::npos) << text;
  EXPECT_NE(text.find("exit code 75"), std::string::npos) << text;
}

TEST_F(WatchdogTest, SaysNothingWhileCollectivesComeAndGo) {
  ::testing::internal::CaptureStderr();
  {
    Watchdog watchdog;
    start(watchdog, 0.3);
    for (int i = 0; i < 100; ++i) {
      watchdog.entered("all_reduce", "tensor", 64);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      watchdog.left();
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(400));  // outside: computing may take as long as it likes
    EXPECT_EQ(row().sequence, 100);
    EXPECT_FALSE(row().inside);
  }
  EXPECT_EQ(ended_.get_future().wait_for(std::chrono::seconds(0)), std::future_status::timeout);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  EXPECT_EQ(row().state, RankState::ended);
}

TEST_F(WatchdogTest, KeepsWhatItWasToldBeforeTheStart) {
  Watchdog watchdog;
  watchdog.entered("broadcast", "world", 8);
  watchdog.left();
  watchdog.set_step(3);
  watchdog.set_phase("load");
  start(watchdog, 600);
  const RankStatus status = row();
  EXPECT_EQ(status.state, RankState::running);
  EXPECT_EQ(status.sequence, 1);
  EXPECT_EQ(status.step, 3);
  EXPECT_EQ(status.phase, "load");
  EXPECT_EQ(status.op, "broadcast");
  EXPECT_EQ(status.pid, ::getpid());
  EXPECT_FALSE(status.dead);
}

TEST_F(WatchdogTest, ATimeoutOfZeroWatchesNothing) {
  Watchdog watchdog;
  start(watchdog, 0);
  watchdog.entered("all_reduce", "tensor", 64);
  EXPECT_FALSE(std::filesystem::exists(directory_ / "board"));
}

TEST_F(WatchdogTest, OneRankClaimsTheEndAndNobodyElse) {
  Watchdog watchdog;
  EXPECT_FALSE(watchdog.is_watching());
  start(watchdog, 600);
  EXPECT_TRUE(watchdog.is_watching());
  EXPECT_TRUE(watchdog.claim_end());
  EXPECT_FALSE(watchdog.claim_end());
}

TEST_F(WatchdogTest, AnEndWithoutAClaimLeavesNone) {
  {
    Watchdog watchdog;
    start(watchdog, 600);
  }
  EXPECT_FALSE(StatusBoard::open(directory_ / "board", 1).is_claimed());
}

}  // namespace
}  // namespace dm
