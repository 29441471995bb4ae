// The arena: scopes, alignment, exhaustion, and a plan that agrees with the real run.
#include "runtime/arena.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

namespace dm {
namespace {

using Table = std::vector<std::pair<std::string, std::int64_t>>;

TEST(Arena, ScopesGiveBackInReverse) {
  MemoryReport report;
  Arena arena(Buffer("arena", 4096, Device::cpu(), report));
  const Tensor kept = arena.allocate({10}, DType::f32, "kept");
  EXPECT_EQ(arena.used(), 256);
  void* inner_memory = nullptr;
  {
    const Arena::Scope outer(arena);
    const Tensor a = arena.allocate({65}, DType::f32, "a");
    EXPECT_EQ(arena.used(), 256 + 512);
    {
      const Arena::Scope inner(arena);
      inner_memory = arena.allocate({1}, DType::u8, "b").data();
      EXPECT_EQ(arena.used(), 256 + 512 + 256);
    }
    EXPECT_EQ(arena.used(), 256 + 512);
    EXPECT_EQ(arena.allocate({1}, DType::u8, "c").data(), inner_memory);
    EXPECT_NE(a.data(), kept.data());
  }
  EXPECT_EQ(arena.used(), 256);
  EXPECT_EQ(arena.peak(), 1024);
}

TEST(Arena, TensorsAreAlignedAndDoNotOverlap) {
  MemoryReport report;
  Arena arena(Buffer("arena", 1 << 16, Device::cpu(), report));
  std::uintptr_t end = 0;
  for (const std::int64_t n : {1, 63, 64, 65, 1000}) {
    const Tensor tensor = arena.allocate({n}, DType::f32, "t");
    const auto begin = reinterpret_cast<std::uintptr_t>(tensor.data());
    EXPECT_EQ(begin % 256, 0u);
    EXPECT_GE(begin, end);
    end = begin + static_cast<std::uintptr_t>(tensor.bytes());
  }
}

/// What stands in for a training step: a layer that keeps something and works in a scope.
void run_step(Arena& arena, std::int64_t tokens) {
  const Arena::Scope step(arena);
  for (int layer = 0; layer < 3; ++layer) {
    arena.allocate({tokens, 64}, DType::f32, "saved");
    const Arena::Scope scope(arena);
    arena.allocate({tokens, 100}, DType::f32, "scratch");
  }
  const Arena::Scope head(arena);
  arena.allocate({tokens, 8}, DType::f32, "logits");
}

TEST(Arena, APlanSaysExactlyWhatTheRealRunNeeds) {
  Arena plan;
  run_step(plan, 16);
  EXPECT_EQ(plan.used(), 0);
  EXPECT_EQ(plan.peak(), 3 * 4096 + 6400);
  EXPECT_EQ(plan.peak_by_tag(), (Table{{"saved", 3 * 4096}, {"scratch", 6400}}));

  MemoryReport report;
  Arena arena(Buffer("arena", plan.peak(), Device::cpu(), report));
  run_step(arena, 16);
  EXPECT_EQ(arena.peak(), plan.peak());
}

TEST(Arena, APlanHandsOutTensorsWithoutMemory) {
  Arena plan;
  const Tensor tensor = plan.allocate({1 << 20, 1 << 20, 16}, DType::f32, "huge");
  EXPECT_EQ(tensor.data(), nullptr);
  EXPECT_EQ(tensor.device(), Device::plan());
  EXPECT_EQ(plan.peak(), std::int64_t{1} << 46);
}

TEST(Arena, ThePeakTableIsThatOfThePeakAlone) {
  Arena plan;
  {
    const Arena::Scope scope(plan);
    plan.allocate({1000}, DType::u8, "early");
  }
  plan.allocate({100}, DType::u8, "b");
  plan.allocate({2000}, DType::u8, "late");
  plan.allocate({100}, DType::u8, "a");
  EXPECT_EQ(plan.peak_by_tag(), (Table{{"late", 2048}, {"a", 256}, {"b", 256}}));
}

TEST(Arena, ExhaustionNamesTheTensorAndTheSize) {
  MemoryReport report;
  Arena plan;
  run_step(plan, 16);
  Arena arena(Buffer("arena", plan.peak(), Device::cpu(), report));
  try {
    run_step(arena, 17);
    ADD_FAILURE() << "a longer sequence fitted";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "the arena of 18688 bytes is exhausted by scratch [17, 100]: the plan it was sized by ran another shape");
  }
  EXPECT_EQ(arena.used(), 0) << "the scopes on the way out gave their memory back";
  EXPECT_NO_THROW(run_step(arena, 16));
}

TEST(Arena, AnEmptyTensorTakesNothing) {
  Arena plan;
  EXPECT_TRUE(plan.allocate({0, 5}, DType::f32, "empty"));
  EXPECT_EQ(plan.peak(), 0);
}

}  // namespace
}  // namespace dm
