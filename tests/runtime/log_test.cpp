// Who speaks where, and that nobody minds a closed pipe.
#include "runtime/log.h"

#include <signal.h>
#include <unistd.h>

#include <gtest/gtest.h>

namespace dm {
namespace {

TEST(Log, InfoIsForTheSpeakingRankWarningsAreForAll) {
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  const Log speaker(true, rank_name(0, "node7"));
  const Log other(false, rank_name(3, "node7"));
  speaker.info("step 1");
  other.info("step 1 too");
  speaker.warn("slow disk");
  other.warn("two\nlines");
  EXPECT_TRUE(speaker.speaks());
  EXPECT_FALSE(other.speaks());
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "step 1\n");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "rank 0 (node7): slow disk\nrank 3 (node7): two\nlines\n");
}

/// Puts `descriptor` in the place of stdout while it lives.
class StdoutReplaced {
 public:
  explicit StdoutReplaced(int descriptor) : saved_(::dup(STDOUT_FILENO)) { ::dup2(descriptor, STDOUT_FILENO); }
  ~StdoutReplaced() {
    ::dup2(saved_, STDOUT_FILENO);
    ::close(saved_);
  }

 private:
  int saved_;
};

TEST(Log, AClosedPipeIsIgnored) {
  const auto before = ::signal(SIGPIPE, SIG_IGN);
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  ::close(ends[0]);
  {
    const StdoutReplaced replaced(ends[1]);
    Log(true, "rank 0").info("nobody reads this");
    ::close(STDOUT_FILENO);
    Log(true, "rank 0").info("nor this");
  }
  ::close(ends[1]);
  ::signal(SIGPIPE, before);
}

TEST(Log, ALongTextArrivesWhole) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const std::string text(20000, 'x');
  {
    const StdoutReplaced replaced(ends[1]);
    Log(true, "rank 0").info(text);
  }
  ::close(ends[1]);
  std::string arrived;
  char piece[4096];
  for (ssize_t count; (count = ::read(ends[0], piece, sizeof piece)) > 0;)
    arrived.append(piece, static_cast<std::size_t>(count));
  ::close(ends[0]);
  EXPECT_EQ(arrived, text + "\n");
}

}  // namespace
}  // namespace dm
