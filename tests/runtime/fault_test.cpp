// Fault requests: what is understood, what is refused, and when each fires.
#include "runtime/fault.h"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>

#include <gtest/gtest.h>

#include "runtime/error.h"

namespace dm {
namespace {

TEST(Faults, FireOnceAtTheirRankStepAndPoint) {
  const char* requests = "rank=1,step=3,point=gradient,fault=nan;fault=close,point=save:close,step=0,rank=1";
  FaultInjector other(requests, 0);
  FaultInjector mine(requests, 1);
  EXPECT_EQ(mine.at("gradient"), Fault::none);  // step 0
  EXPECT_EQ(mine.at("save:close"), Fault::close);
  EXPECT_EQ(mine.at("save:close"), Fault::none);
  mine.set_step(3);
  other.set_step(3);
  EXPECT_EQ(mine.at("forward"), Fault::none);
  EXPECT_EQ(mine.at("gradient"), Fault::nan);
  EXPECT_EQ(mine.at("gradient"), Fault::none);
  EXPECT_EQ(other.at("gradient"), Fault::none);
}

TEST(Faults, TheSameRequestTwiceFiresTwice) {
  FaultInjector faults("rank=0,step=0,point=save:write,fault=disk_full;rank=0,step=0,point=save:write,fault=short_write", 0);
  EXPECT_EQ(faults.at("save:write"), Fault::disk_full);
  EXPECT_EQ(faults.at("save:write"), Fault::short_write);
  EXPECT_EQ(faults.at("save:write"), Fault::none);
}

TEST(Faults, ErrorThrowsAndKillKills) {
  FaultInjector faults("rank=0,step=0,point=data,fault=error", 0);
  EXPECT_THROW(faults.at("data"), Error);

  const pid_t child = ::fork();
  if (child == 0) {
    FaultInjector("rank=0,step=0,point=backward,fault=kill", 0).at("backward");
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

TEST(Faults, HangHangs) {
  const pid_t child = ::fork();
  if (child == 0) {
    FaultInjector("rank=0,step=0,point=reduce,fault=hang", 0).at("reduce");
    ::_exit(0);
  }
  ::usleep(20000);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, WNOHANG), 0);  // still there
  ::kill(child, SIGKILL);
  EXPECT_EQ(::waitpid(child, &status, 0), child);
}

TEST(Faults, EveryPointIsAccepted) {
  for (const std::string_view point : fault_points()) {
    FaultInjector faults("rank=0,step=0,point=" + std::string(point) + ",fault=error", 0);
    EXPECT_THROW(faults.at(point), Error) << point;
  }
}

TEST(Faults, RefusalsSayWhatIsWrongAndWhatIsKnown) {
  const auto message_of = [](const std::string& requests) -> std::string {
    try {
      FaultInjector faults(requests, 0);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::usage);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message_of(""), "");
  EXPECT_NE(message_of("rank=0,step=1,point=forwrd,fault=nan").find("unknown point forwrd"), std::string::npos);
  EXPECT_NE(message_of("rank=0,step=1,point=forwrd,fault=nan").find("save:half_shard"), std::string::npos);
  EXPECT_NE(message_of("rank=0,step=1,point=forward,fault=boom").find("unknown fault boom"), std::string::npos);
  EXPECT_NE(message_of("rank=0,step=1,point=forward,fault=boom").find("disk_full"), std::string::npos);
  EXPECT_NE(message_of("rnk=0,step=1,point=forward,fault=nan").find("unknown word rnk"), std::string::npos);
  EXPECT_NE(message_of("rank=x,step=1,point=forward,fault=nan").find("rank=x is not a count"), std::string::npos);
  EXPECT_NE(message_of("rank=-1,step=1,point=forward,fault=nan").find("is not a count"), std::string::npos);
  EXPECT_NE(message_of("rank=0,step=1,point=forward").find("missing"), std::string::npos);
  EXPECT_NE(message_of("rank=0,step=1,point=forward,fault=fsync").find("cannot happen"), std::string::npos);
  EXPECT_NE(message_of("rank=0,step=1,point=save:close,fault=nan").find("cannot happen"), std::string::npos);
}

}  // namespace
}  // namespace dm
