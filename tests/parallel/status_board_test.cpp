// The board's file, and the words that name a culprit.
#include "parallel/status_board.h"

#include <sys/wait.h>
#include <unistd.h>
#include <fstream>

#include <gtest/gtest.h>

#include "runtime/error.h"
#include "runtime/host.h"

namespace dm {
namespace {

RankStatus rank_in(std::int64_t sequence, std::string op, bool inside, std::string group = "world") {
  RankStatus rank;
  rank.state = RankState::running;
  rank.host = "node" + std::to_string(sequence % 2);
  rank.pid = 4321;
  rank.op = std::move(op);
  rank.group = std::move(group);
  rank.sequence = sequence;
  rank.bytes = 4096;
  rank.inside = inside;
  rank.step = 5;
  rank.phase = "forward";
  rank.unchanged_seconds = 12.34;
  return rank;
}

TEST(Culprits, ARankThatNeverEnteredIsNamedAndThoseThatWaitForItAreNot) {
  // Rank 2 waits for rank 3 in their tensor group, the others wait for rank 2.
  const std::vector<RankStatus> ranks{rank_in(17, "all_reduce", true, "data"), rank_in(17, "all_reduce", true, "data"),
                                      rank_in(16, "all_reduce", true, "tensor"), rank_in(15, "barrier", false)};
  EXPECT_EQ(
      name_culprits(ranks, 10),
      "rank 3 (node1) never entered collective 16 (all_reduce of group tensor, 4096 bytes): it left collective 15 (barrier "
      "of group world, 4096 bytes) 12.3 s ago, step 5, phase forward");
}

TEST(Culprits, TheDeadComeFirst) {
  std::vector<RankStatus> ranks{rank_in(17, "all_reduce", true), rank_in(16, "barrier", false),
                                rank_in(17, "all_reduce", true)};
  ranks[2].dead = true;
  EXPECT_EQ(
      name_culprits(ranks, 10),
      "rank 2 (node1) died inside collective 17 (all_reduce of group world, 4096 bytes), step 5, phase forward (process "
      "4321 is gone)");
  ranks[0].dead = true;
  EXPECT_NE(name_culprits(ranks, 10).find("rank 0 (node1) died"), std::string::npos);
  EXPECT_NE(name_culprits(ranks, 10).find("; rank 2 (node1) died"), std::string::npos);
}

TEST(Culprits, ThenThoseThatEndedOrNeverStarted) {
  std::vector<RankStatus> ranks{rank_in(17, "all_reduce", true), rank_in(16, "barrier", false), RankStatus{}};
  ranks[1].state = RankState::ended;
  EXPECT_EQ(name_culprits(ranks, 10),
            "rank 1 (node0) ended after collective 16 (barrier of group world, 4096 bytes); rank 2 () never started");
}

TEST(Culprits, ThenThoseWithoutASignOfLife) {
  std::vector<RankStatus> ranks{rank_in(17, "all_reduce", true), rank_in(16, "barrier", false)};
  ranks[1].silent_seconds = 33;
  EXPECT_EQ(name_culprits(ranks, 10).find("rank 1 (node0) gave no sign of life for 33.0 s"), 0u);
}

TEST(Culprits, ARankThatLeftWhatOthersAreStillIn) {
  const std::vector<RankStatus> ranks{rank_in(17, "broadcast", false), rank_in(17, "broadcast", true)};
  EXPECT_EQ(name_culprits(ranks, 10).find("rank 0 (node1) is in no collective: it left collective 17"), 0u);
}

TEST(Culprits, TheOneThatCallsSomethingElse) {
  const std::vector<RankStatus> ranks{rank_in(17, "all_reduce", true), rank_in(17, "barrier", true),
                                      rank_in(17, "all_reduce", true)};
  EXPECT_EQ(
      name_culprits(ranks, 10),
      "rank 1 (node1) is inside collective 17 (barrier of group world, 4096 bytes) while others are inside collective 17 "
      "(all_reduce of group world, 4096 bytes)");
}

TEST(Culprits, TwoRanksThatDisagreeAreBothNamed) {
  const std::vector<RankStatus> ranks{rank_in(17, "all_reduce", true), rank_in(17, "barrier", true)};
  const std::string text = name_culprits(ranks, 10);
  EXPECT_EQ(text.find("ranks call collectives in different orders: rank 0 (node1) is inside collective 17 (all_reduce"), 0u);
  EXPECT_NE(text.find("; rank 1 (node1) is inside collective 17 (barrier"), std::string::npos);
}

TEST(Culprits, NobodyWhenAllAreTogether) {
  const std::vector<RankStatus> ranks{rank_in(17, "all_reduce", true), rank_in(17, "all_reduce", true)};
  EXPECT_EQ(name_culprits(ranks, 10).find("every rank is inside collective 17"), 0u);
}

TEST(FormatBoard, OneAlignedLineARank) {
  std::vector<RankStatus> ranks{rank_in(17, "all_reduce", true), rank_in(16, "reduce_scatter", false)};
  ranks[1].dead = true;
  EXPECT_EQ(
      format_board(ranks),
      " rank  host        pid     step  phase       collective  op              group            bytes  state\n"
      "    0  node1      4321        5  forward             17  all_reduce      world             4096  inside for 12.3 s\n"
      "    1  node0      4321        5  forward             16  reduce_scatter  world             4096  dead, was "
      "outside\n");
}

TEST(SharedText, CutsLongTextsAndForgetsOldOnes) {
  SharedText<8> text;
  text.store("backward pass");
  EXPECT_EQ(text.load(), "backward");
  text.store("save");
  EXPECT_EQ(text.load(), "save");
  text.store({});
  EXPECT_EQ(text.load(), "");
}

class StatusBoardFile : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::TempDir() + "board_XXXXXX";
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name;
    path_ = directory_ / "board";
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::filesystem::path directory_;
  std::filesystem::path path_;
};

TEST_F(StatusBoardFile, ProcessesSeeOneAnother) {
  const StatusBoard board = StatusBoard::create(path_, 3);
  const pid_t child = ::fork();
  if (child == 0) {
    const StatusBoard same = StatusBoard::open(path_, 3);
    StatusSlot& slot = same.slot(1);
    slot.pid = ::getpid();
    slot.host.store(host_name());
    slot.op.store("all_gather");
    slot.sequence = 7;
    slot.inside = true;
    slot.state = RankState::running;
    ::_exit(same.claim(1) ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  ASSERT_EQ(status, 0);
  const std::vector<RankStatus> ranks = board.read();
  ASSERT_EQ(ranks.size(), 3u);
  EXPECT_EQ(ranks[0].state, RankState::absent);
  EXPECT_EQ(ranks[1].op, "all_gather");
  EXPECT_EQ(ranks[1].sequence, 7);
  EXPECT_TRUE(ranks[1].inside);
  EXPECT_TRUE(ranks[1].dead) << "it is gone and never said so";
  EXPECT_TRUE(board.is_claimed());
  EXPECT_FALSE(board.claim(0));
  board.slot(1).state = RankState::ended;
  EXPECT_FALSE(board.read()[1].dead);
}

TEST_F(StatusBoardFile, ANewBoardDoesNotTouchTheOneOfAnEarlierJob) {
  const StatusBoard old = StatusBoard::create(path_, 2);
  old.slot(0).step = 41;
  const StatusBoard fresh = StatusBoard::create(path_, 4);
  EXPECT_EQ(fresh.slot(0).step, 0);
  EXPECT_EQ(old.slot(0).step, 41);
}

TEST_F(StatusBoardFile, ErrorsNameThePath) {
  EXPECT_THROW(StatusBoard::open(path_, 2), Error);
  EXPECT_THROW(StatusBoard::create(directory_ / "absent" / "board", 2), Error);
  const StatusBoard board = StatusBoard::create(path_, 2);
  EXPECT_THROW(board.slot(2), Error);
  try {
    StatusBoard::open(path_, 3);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(path_.string()), std::string::npos);
  }
}

}  // namespace
}  // namespace dm
