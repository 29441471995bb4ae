// One job for one run directory: refusal, release, and the lock of a killed job.
#include "parallel/run_lock.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>

#include <gtest/gtest.h>

#include "runtime/error.h"
#include "runtime/host.h"
#include "tests/testing/temporary_directory.h"

namespace dm {
namespace {

class RunLocks : public ::testing::Test {
 protected:
  std::string refusal() {
    try {
      RunLock lock(directory_.path(), log_);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }
  /// The warning with which a lock is taken.
  std::string warning() {
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(refusal(), "");
    return ::testing::internal::GetCapturedStderr();
  }
  std::filesystem::path file() const { return directory_.path() / "lock"; }

  TemporaryDirectory directory_;
  Log log_{false, "test"};
};

TEST_F(RunLocks, ASecondIsRefusedWithHostAndPidUntilTheFirstEnds) {
  {
    RunLock lock(directory_.path(), log_);
    const std::string message = refusal();
    EXPECT_NE(message.find("process " + std::to_string(::getpid()) + " on " + host_name()), std::string::npos) << message;
    EXPECT_NE(message.find(directory_.path().string()), std::string::npos) << message;
    EXPECT_TRUE(std::filesystem::exists(file()));
  }
  EXPECT_FALSE(std::filesystem::exists(file()));
  EXPECT_EQ(warning(), "");
}

TEST_F(RunLocks, AnotherProcessHoldsItUntilItIsKilled) {
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    RunLock lock(directory_.path(), log_);
    if (::write(ready[1], "x", 1) == 1) ::pause();
    ::_exit(1);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_NE(refusal().find("process " + std::to_string(child)), std::string::npos);
  ::kill(child, SIGKILL);
  siginfo_t ended{};
  ASSERT_EQ(::waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOWAIT), 0);  // dead, and nobody has asked yet
  EXPECT_TRUE(std::filesystem::exists(file()));
  EXPECT_NE(warning().find("taking over"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(file()));
  ASSERT_EQ(::waitpid(child, nullptr, 0), child);
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(RunLocks, TheTextDecidesWhereFlockDoesNotReach) {
  // Another host may still be at work.
  write_bytes(file(), R"({"host":"elsewhere.example","pid":1,"began":1})");
  EXPECT_NE(refusal().find("process 1 on elsewhere.example"), std::string::npos);
  EXPECT_NE(refusal().find("remove " + file().string()), std::string::npos);
  // A process id that now belongs to a process which began at another time.
  write_bytes(file(), "{\"host\":\"" + host_name() + "\",\"pid\":" + std::to_string(::getpid()) + ",\"began\":1}");
  EXPECT_NE(warning().find("taking over"), std::string::npos);
  // Written by a process that was killed before it had written.
  write_bytes(file(), "");
  EXPECT_NE(warning().find("taking over"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(file()));
}

TEST_F(RunLocks, AMissingRunDirectoryIsAnError) {
  std::filesystem::remove_all(directory_.path());
  EXPECT_NE(refusal().find("No such file"), std::string::npos);
}

}  // namespace
}  // namespace dm
