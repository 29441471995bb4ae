// The learning rate of chosen steps, by hand.
#include "launch/schedule.h"

#include <cmath>

#include <gtest/gtest.h>

namespace dm {
namespace {

TrainOptions::Optimizer settings(const std::string& schedule, std::int64_t warmup = 10) {
  TrainOptions::Optimizer optimizer;
  optimizer.lr = 1.0;
  optimizer.min_lr = 0.1;
  optimizer.warmup_steps = warmup;
  optimizer.schedule = schedule;
  return optimizer;
}

TEST(LearningRate, WarmsUpLinearlyFromTheFirstStep) {
  for (const char* schedule : {"cosine", "linear", "constant"}) {
    EXPECT_DOUBLE_EQ(learning_rate(settings(schedule), 110, 1), 0.1) << schedule;
    EXPECT_DOUBLE_EQ(learning_rate(settings(schedule), 110, 5), 0.5) << schedule;
    EXPECT_DOUBLE_EQ(learning_rate(settings(schedule), 110, 10), 1.0) << schedule;
  }
}

TEST(LearningRate, DecaysToItsEndAndStaysThere) {
  EXPECT_DOUBLE_EQ(learning_rate(settings("linear"), 110, 35), 0.1 + 0.9 * 0.75);
  EXPECT_DOUBLE_EQ(learning_rate(settings("cosine"), 110, 60), 0.1 + 0.9 * 0.5);
  EXPECT_NEAR(learning_rate(settings("cosine"), 110, 35), 0.1 + 0.9 * 0.5 * (1 + std::sqrt(0.5)), 1e-15);
  for (const char* schedule : {"cosine", "linear"}) {
    EXPECT_NEAR(learning_rate(settings(schedule), 110, 110), 0.1, 1e-15) << schedule;
    EXPECT_NEAR(learning_rate(settings(schedule), 110, 111), 0.1, 1e-15) << schedule;
    EXPECT_GT(learning_rate(settings(schedule), 110, 109), 0.1) << schedule;
  }
  EXPECT_EQ(learning_rate(settings("constant"), 110, 1000), 1.0);
}

TEST(LearningRate, WithoutWarmUpAndWithNothingElse) {
  EXPECT_DOUBLE_EQ(learning_rate(settings("linear", 0), 10, 1), 0.1 + 0.9 * 0.9);
  EXPECT_DOUBLE_EQ(learning_rate(settings("cosine", 10), 10, 10), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(settings("cosine", 20), 10, 10), 0.5);
}

}  // namespace
}  // namespace dm
