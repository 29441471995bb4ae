// Every collective over MPI against numbers computed by one rank alone, bit for bit.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <gtest/gtest.h>
#include <mpi.h>

#include "parallel/communicator.h"

namespace dm {
namespace {

/// Element `i` of `rank`: magnitudes differ by powers of two, so that another order of addition gives other bits.
template <class T>
T value(int rank, std::int64_t i) {
  const std::int64_t mixed = (i * 2654435761 + rank * 40503 + 12345) % 2001 - 1000;
  if constexpr (std::is_same_v<T, float> || std::is_same_v<T, BFloat16>) {
    return static_cast<T>(static_cast<float>(mixed) * 0.0117f * std::exp2(static_cast<float>((i + 5 * rank) % 13)));
  } else if constexpr (std::is_same_v<T, std::int64_t>) {
    return mixed * (std::int64_t{1} << 40);
  } else {
    return static_cast<T>(mixed);
  }
}

template <class T>
std::vector<T> values(int rank, std::int64_t count, std::int64_t first = 0) {
  std::vector<T> result(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) result[static_cast<std::size_t>(i)] = value<T>(rank, first + i);
  return result;
}

template <class T>
std::vector<T> reduced(int ranks, std::int64_t count, ReduceOp op, std::int64_t first = 0) {
  using A = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;
  std::vector<T> result;
  for (std::int64_t i = first; i < first + count; ++i) {
    A total = static_cast<A>(value<T>(0, i));
    for (int rank = 1; rank < ranks; ++rank) {
      const A next = static_cast<A>(value<T>(rank, i));
      total = op == ReduceOp::sum ? total + next : std::max(total, next);
    }
    result.push_back(static_cast<T>(total));
  }
  return result;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

template <class T>
Tensor tensor_of(std::vector<T>& data) {
  return Tensor::of(data.data(), {static_cast<std::int64_t>(data.size())});
}

/// Workspaces: everything in one piece; pieces of a few elements; less than one element a rank.
constexpr std::int64_t kWorkspaces[] = {kMpiWorkspaceBytes, 96, 1};
constexpr std::int64_t kCounts[] = {0, 1, 2, 3, 5, 7, 64, 129, 4099};

std::int64_t largest_count(std::int64_t workspace) {
  return workspace == 1 ? 64 : 4099;
}

template <class T>
class TypedCollectives : public ::testing::Test {
 protected:
  Stream stream_{Device::cpu()};
};
using Reducible = ::testing::Types<float, BFloat16, std::int32_t, std::int64_t>;
TYPED_TEST_SUITE(TypedCollectives, Reducible);

TYPED_TEST(TypedCollectives, AllReduceAddsInRankOrder) {
  for (std::int64_t workspace : kWorkspaces) {
    const auto world = make_mpi_communicator(nullptr, workspace);
    for (ReduceOp op : {ReduceOp::sum, ReduceOp::max}) {
      for (std::int64_t count : kCounts) {
        if (count > largest_count(workspace)) continue;
        auto data = values<TypeParam>(world->rank(), count);
        world->all_reduce(this->stream_, tensor_of(data), op);
        EXPECT_TRUE(same_bits(data, reduced<TypeParam>(world->size(), count, op))) << count << " in " << workspace;
      }
    }
  }
}

TYPED_TEST(TypedCollectives, ReduceScatterGivesEachRankItsPart) {
  for (std::int64_t workspace : kWorkspaces) {
    const auto world = make_mpi_communicator(nullptr, workspace);
    for (std::int64_t count : kCounts) {
      if (count > largest_count(workspace)) continue;
      const auto expected = reduced<TypeParam>(world->size(), count, ReduceOp::sum, world->rank() * count);
      auto full = values<TypeParam>(world->rank(), count * world->size());
      const auto before = full;
      std::vector<TypeParam> shard(static_cast<std::size_t>(count));
      world->reduce_scatter(this->stream_, tensor_of(full), tensor_of(shard));
      EXPECT_TRUE(same_bits(shard, expected)) << count << " in " << workspace;

      full = before;
      const Tensor part = tensor_of(full).flat(world->rank() * count, count);
      world->reduce_scatter(this->stream_, tensor_of(full), part);
      const auto* own = static_cast<const TypeParam*>(part.data());
      EXPECT_TRUE(same_bits(std::vector<TypeParam>(own, own + count), expected)) << count << " in place, " << workspace;
    }
  }
}

TYPED_TEST(TypedCollectives, AllGatherPutsShardsInRankOrder) {
  for (std::int64_t workspace : kWorkspaces) {
    const auto world = make_mpi_communicator(nullptr, workspace);
    for (std::int64_t count : kCounts) {
      if (count > largest_count(workspace)) continue;
      std::vector<TypeParam> expected;
      for (int rank = 0; rank < world->size(); ++rank) {
        const auto part = values<TypeParam>(rank, count);
        expected.insert(expected.end(), part.begin(), part.end());
      }
      auto shard = values<TypeParam>(world->rank(), count);
      std::vector<TypeParam> full(expected.size());
      world->all_gather(this->stream_, tensor_of(shard), tensor_of(full));
      EXPECT_TRUE(same_bits(full, expected)) << count << " in " << workspace;

      std::vector<TypeParam> in_place(expected.size());
      std::copy(shard.begin(), shard.end(), in_place.begin() + world->rank() * count);
      world->all_gather(this->stream_, tensor_of(in_place).flat(world->rank() * count, count), tensor_of(in_place));
      EXPECT_TRUE(same_bits(in_place, expected)) << count << " in place, " << workspace;
    }
  }
}

TYPED_TEST(TypedCollectives, BroadcastCopiesTheRoot) {
  for (std::int64_t workspace : kWorkspaces) {
    const auto world = make_mpi_communicator(nullptr, workspace);
    for (std::int64_t count : {0, 1, 5, 60}) {
      for (int root = 0; root < world->size(); ++root) {
        auto data = values<TypeParam>(world->rank(), count);
        world->broadcast(this->stream_, tensor_of(data), root);
        EXPECT_TRUE(same_bits(data, values<TypeParam>(root, count)));
      }
    }
  }
}

TEST(MpiCommunicator, BytesTravelToo) {
  Stream stream(Device::cpu());
  const auto world = make_mpi_communicator();
  std::vector<std::uint8_t> shard(3, static_cast<std::uint8_t>(world->rank() + 7));
  std::vector<std::uint8_t> full(shard.size() * static_cast<std::size_t>(world->size()));
  world->all_gather(stream, tensor_of(shard), tensor_of(full));
  for (std::size_t i = 0; i < full.size(); ++i) EXPECT_EQ(full[i], i / 3 + 7);
  world->broadcast(stream, tensor_of(shard), world->size() - 1);
  EXPECT_EQ(shard[2], world->size() + 6);
  EXPECT_THROW(world->all_reduce(stream, tensor_of(shard)), Error);
}

TEST(MpiCommunicator, LargeTensorsAndManyShapes) {
  Stream stream(Device::cpu());
  const auto world = make_mpi_communicator(nullptr, 64 << 10);
  const std::int64_t count = 300007;
  auto data = values<float>(world->rank(), count);
  world->all_reduce(stream, tensor_of(data));
  EXPECT_TRUE(same_bits(data, reduced<float>(world->size(), count, ReduceOp::sum)));

  auto again = values<float>(world->rank(), 6 * 7);
  world->all_reduce(stream, Tensor::of(again.data(), {2, 3, 7}));
  EXPECT_TRUE(same_bits(again, reduced<float>(world->size(), 6 * 7, ReduceOp::sum)));
}

TEST(MpiCommunicator, MaximumKeepsNan) {
  Stream stream(Device::cpu());
  const auto world = make_mpi_communicator();
  for (int bad = 0; bad < world->size(); ++bad) {
    std::vector<float> data{1.0f, static_cast<float>(world->rank())};
    if (world->rank() == bad) data[0] = std::numeric_limits<float>::quiet_NaN();
    world->all_reduce(stream, tensor_of(data), ReduceOp::max);
    EXPECT_TRUE(std::isnan(data[0]));
    EXPECT_EQ(data[1], static_cast<float>(world->size() - 1));
  }
}

TEST(MpiCommunicator, CountsCallsAndBytesAndTimesThem) {
  Trace trace;
  Stream stream(Device::cpu(), &trace);
  const auto world = make_mpi_communicator();
  std::vector<float> shard(6);
  std::vector<float> full(shard.size() * static_cast<std::size_t>(world->size()));
  world->all_reduce(stream, tensor_of(shard));
  world->all_gather(stream, tensor_of(shard), tensor_of(full));
  world->reduce_scatter(stream, tensor_of(full), tensor_of(shard));
  world->barrier(stream);
  EXPECT_EQ(world->counters().calls, 4);
  EXPECT_EQ(world->counters().bytes, 24 + 24 + 24 * world->size());
  ASSERT_EQ(trace.entries().size(), 4u);
  EXPECT_EQ(trace.entries()[0].name, "all_reduce");
  EXPECT_EQ(trace.entries()[3].name, "barrier");
  EXPECT_EQ(trace.entries()[0].kind, Trace::Kind::communication);
}

struct Journal : CollectiveObserver {
  void entered(std::string_view op, std::string_view group, std::int64_t bytes) override {
    lines.push_back(std::string(op) + " " + std::string(group) + " " + std::to_string(bytes));
  }
  void left() override { lines.push_back("left"); }
  std::vector<std::string> lines;
};

TEST(MpiCommunicator, SplitGroupsOrderRanksByKeyAndKeepTheObserver) {
  Stream stream(Device::cpu());
  Journal journal;
  const auto world = make_mpi_communicator(&journal, 32);
  const auto reversed = world->split(0, -world->rank(), "reversed");
  EXPECT_EQ(reversed->size(), world->size());
  EXPECT_EQ(reversed->rank(), world->size() - 1 - world->rank());

  const auto parity = world->split(world->rank() % 2, world->rank(), "parity");
  EXPECT_EQ(parity->size(), (world->size() + 1 - world->rank() % 2) / 2);
  EXPECT_EQ(parity->rank(), world->rank() / 2);
  std::vector<std::int32_t> data{world->rank()};
  parity->all_reduce(stream, tensor_of(data));
  std::int32_t expected = 0;
  for (int rank = world->rank() % 2; rank < world->size(); rank += 2) expected += rank;
  EXPECT_EQ(data[0], expected);
  EXPECT_EQ(journal.lines, (std::vector<std::string>{"all_reduce parity 4", "left"}));
}

TEST(MpiCommunicator, GroupOfOneCopies) {
  Stream stream(Device::cpu());
  const auto world = make_mpi_communicator();
  const auto alone = world->split(world->rank(), 0, "alone");
  ASSERT_EQ(alone->size(), 1);
  auto data = values<BFloat16>(world->rank(), 5);
  const auto before = data;
  std::vector<BFloat16> other(5);
  alone->all_reduce(stream, tensor_of(data));
  alone->broadcast(stream, tensor_of(data), 0);
  alone->reduce_scatter(stream, tensor_of(data), tensor_of(other));
  EXPECT_TRUE(same_bits(other, before));
  other.assign(5, BFloat16(0.0f));
  alone->all_gather(stream, tensor_of(data), tensor_of(other));
  EXPECT_TRUE(same_bits(other, before));
  EXPECT_TRUE(same_bits(data, before));
}

template <class Work>
std::string error_of(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(MpiCommunicator, OtherShapesOnOtherRanksAreFound) {
  Stream stream(Device::cpu());
  const auto world = make_mpi_communicator();
  const auto pair = world->split(world->rank() / 2, world->rank(), "pair");
  if (pair->size() != 2) return;
  std::vector<float> data(pair->rank() == 0 ? 4 : 8);
  const std::string text = error_of([&] { pair->all_reduce(stream, tensor_of(data)); });
  EXPECT_NE(text.find("group pair"), std::string::npos) << text;
  EXPECT_NE(text.find("rank " + std::to_string(1 - pair->rank())), std::string::npos) << text;
  EXPECT_NE(text.find("same shape"), std::string::npos) << text;
}

TEST(MpiCommunicator, OtherCollectivesOnOtherRanksAreFound) {
  Stream stream(Device::cpu());
  const auto world = make_mpi_communicator();
  const auto pair = world->split(world->rank() / 2, world->rank(), "pair");
  if (pair->size() != 2) return;
  std::vector<float> shard(4);
  std::vector<float> full(8);
  const std::string text = error_of([&] {
    if (pair->rank() == 0) {
      pair->all_reduce(stream, tensor_of(shard));
    } else {
      pair->all_gather(stream, tensor_of(shard), tensor_of(full));
    }
  });
  EXPECT_NE(text.find("same order"), std::string::npos) << text;
  EXPECT_NE(text.find("all_gather of float32"), std::string::npos) << text;
  EXPECT_NE(text.find("sum all_reduce of float32"), std::string::npos) << text;
}

TEST(MpiCommunicator, OtherElementTypesOnOtherRanksAreFound) {
  Stream stream(Device::cpu());
  const auto world = make_mpi_communicator();
  const auto pair = world->split(world->rank() / 2, world->rank(), "pair");
  if (pair->size() != 2) return;
  std::vector<float> floats(4);
  std::vector<std::int32_t> integers(4);
  const Tensor tensor = pair->rank() == 0 ? tensor_of(floats) : tensor_of(integers);
  const std::string text = error_of([&] { pair->all_reduce(stream, tensor); });
  EXPECT_NE(text.find("float32"), std::string::npos) << text;
  EXPECT_NE(text.find("int32"), std::string::npos) << text;
}

TEST(MpiCommunicator, RanksThatLostCountAreFound) {
  Stream stream(Device::cpu());
  const auto world = make_mpi_communicator();
  const auto pair = world->split(world->rank() / 2, world->rank(), "pair");
  if (pair->size() != 2) return;
  std::vector<float> empty;
  std::vector<float> data(4);
  if (pair->rank() == 0) pair->all_reduce(stream, Tensor::of(data.data(), {0}));
  const std::string text = error_of([&] { pair->all_reduce(stream, tensor_of(data)); });
  EXPECT_NE(text.find("same order"), std::string::npos) << text;
}

TEST(MpiEnvironment, LeavesAnMpiThatOthersBroughtUp) {
  { const MpiEnvironment environment(nullptr, nullptr); }
  int finalized = 1;
  MPI_Finalized(&finalized);
  EXPECT_EQ(finalized, 0);
}

}  // namespace
}  // namespace dm
