// Every collective over NCCL against the same over MPI, bit for bit: on two ranks, whose sums have no order.
#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "parallel/communicator.h"
#include "parallel/nccl_communicator.h"
#include "runtime/buffer.h"
#include "runtime/copy.h"
#include "runtime/repeated_work.h"
#include "tests/testing/device.h"

namespace dm {
namespace {

/// Bytes that are different on every rank and finite as any type.
std::vector<std::byte> noise(int rank, std::int64_t bytes) {
  std::vector<std::byte> values(static_cast<std::size_t>(bytes));
  std::uint32_t state = 12345u + static_cast<std::uint32_t>(rank);
  for (std::byte& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<std::byte>(((state >> 24) & 0xbfu) | 0x20u);  // Floats are normal numbers below 2.
  }
  return values;
}

class Nccl : public ::testing::Test {
 protected:
  /// The tensors of one collective on both devices.
  struct Pair {
    Pair(Shape shape, DType dtype, std::vector<std::byte> start, MemoryReport& report)
        : host(std::move(start)),
          on_host(host.data(), shape, dtype, Device::cpu()),
          owner("collective", std::max<std::int64_t>(1, on_host.bytes()), test_device(), report),
          on_gpu(owner.tensor(shape, dtype)) {}
    std::vector<std::byte> host;
    Tensor on_host;
    Buffer owner;
    Tensor on_gpu;
  };

  std::unique_ptr<Pair> make(DType dtype, std::int64_t count) {
    auto pair = std::make_unique<Pair>(Shape{count}, dtype, noise(world_->rank(), count * size_of(dtype)), report_);
    copy(gpu_, pair->on_host, pair->on_gpu);
    gpu_.synchronize();
    return pair;
  }
  /// `tensor` has the same bits on both sides after work(group, stream, side) of each.
  template <class Work>
  void compare(Pair& result, const std::string& what, const Work& work) {
    work(*world_, cpu_, [](Pair& pair) { return pair.on_host; });
    work(*nccl_, gpu_, [](Pair& pair) { return pair.on_gpu; });
    std::vector<std::byte> found(result.host.size());
    copy(gpu_, result.on_gpu, Tensor(found.data(), result.on_gpu.shape(), result.on_gpu.dtype(), Device::cpu()));
    gpu_.synchronize();
    EXPECT_TRUE(found == result.host) << what;
  }

  void compare_reductions(DType dtype, std::int64_t count) {
    for (const ReduceOp op : {ReduceOp::sum, ReduceOp::max}) {
      const auto tensor = make(dtype, count);
      compare(*tensor, op == ReduceOp::sum ? "all_reduce, sum" : "all_reduce, max",
              [&](Communicator& group, Stream& stream, const auto& side) { group.all_reduce(stream, side(*tensor), op); });
    }
    const auto full = make(dtype, count * world_->size()), shard = make(dtype, count);
    compare(*shard, "reduce_scatter", [&](Communicator& group, Stream& stream, const auto& side) {
      group.reduce_scatter(stream, side(*full), side(*shard));
    });
  }
  void compare_moves(DType dtype, std::int64_t count) {
    const auto shard = make(dtype, count), full = make(dtype, count * world_->size());
    compare(*full, "all_gather", [&](Communicator& group, Stream& stream, const auto& side) {
      group.all_gather(stream, side(*shard), side(*full));
    });
    const auto whole = make(dtype, count * world_->size());
    compare(*whole, "all_gather in place", [&](Communicator& group, Stream& stream, const auto& side) {
      group.all_gather(stream, side(*whole).flat(group.rank() * count, count), side(*whole));
    });
    for (int root = 0; root < world_->size(); ++root) {
      const auto tensor = make(dtype, count);
      compare(*tensor, "broadcast",
              [&](Communicator& group, Stream& stream, const auto& side) { group.broadcast(stream, side(*tensor), root); });
    }
  }

  MemoryReport report_;
  Stream cpu_{Device::cpu()}, gpu_{test_device()};
  std::unique_ptr<Communicator> world_ = make_mpi_communicator();
  std::unique_ptr<Communicator> nccl_ = make_nccl_communicator(*world_, test_device(), "world", nullptr);
};

TEST_F(Nccl, GivesTheBitsOfMpi) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::i32, DType::i64, DType::u8}) {
    for (const std::int64_t count : {1, 1000003}) {
      SCOPED_TRACE(std::string(name_of(dtype)) + ", " + std::to_string(count) + " elements");
      if (dtype != DType::u8) compare_reductions(dtype, count);
      compare_moves(dtype, count);
    }
  }
}

/// In a graph, again and again; one tensor is longer than what goes through the staging area at a time.
TEST_F(Nccl, SharedMemoryGivesTheBitsOfMpi) {
  const Buffer large("shared", std::int64_t{96} << 20, test_device(), report_),
      small("shared", std::int64_t{5} << 18, test_device(), report_),
      workspace("workspace", kSharingBytes, test_device(), report_);
  ASSERT_TRUE(nccl_->share(*world_, {&large, &small}, workspace));
  using Work = std::function<void(Communicator & group, Stream & stream, const Tensor& full, const Tensor& own)>;
  const std::pair<std::string, Work> works[] = {
      {"all_reduce", [](auto& group, auto& stream, auto& full, auto&) { group.all_reduce(stream, full); }},
      {"reduce_scatter", [](auto& group, auto& stream, auto& full, auto& own) { group.reduce_scatter(stream, full, own); }},
      {"all_gather", [](auto& group, auto& stream, auto& full, auto& own) { group.all_gather(stream, own, full); }}};
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t part : {std::int64_t{1} << 18, std::int64_t{300008}, std::int64_t{11} << 20}) {
      const std::int64_t count = part * world_->size(), bytes = count * size_of(dtype);
      const Buffer& memory = bytes < small.bytes() ? small : large;
      const Tensor place = memory.tensor({memory.bytes()}, DType::u8).slice(256, bytes);
      const Tensor on_gpu(place.data(), {count}, dtype, place.device());
      const auto on_host = [&](std::vector<std::byte>& values) {
        return Tensor(values.data(), {count}, dtype, Device::cpu());
      };
      const auto own = [&](const Tensor& full) { return full.flat(world_->rank() * part, part); };
      for (const auto& [name, work] : works) {
        SCOPED_TRACE(name + " of " + std::string(name_of(dtype)) + ", parts of " + std::to_string(part));
        const std::vector<std::byte> start = noise(world_->rank(), bytes);
        std::vector<std::byte> expected = start;
        work(*world_, cpu_, on_host(expected), own(on_host(expected)));
        RepeatedWork repeated;
        for (int round = 0; round < 4; ++round) {
          std::vector<std::byte> found = start;
          copy(gpu_, on_host(found), on_gpu);
          repeated.run(gpu_, [&] { work(*nccl_, gpu_, on_gpu, own(on_gpu)); });
          copy(gpu_, on_gpu, on_host(found));
          gpu_.synchronize();
          const bool is_part = name == "reduce_scatter";  // the rest is undefined
          const Tensor mine = is_part ? own(on_host(found)) : on_host(found);
          const Tensor theirs = is_part ? own(on_host(expected)) : on_host(expected);
          EXPECT_EQ(std::memcmp(mine.data(), theirs.data(), static_cast<std::size_t>(mine.bytes())), 0) << "round " << round;
        }
      }
    }
  }
}

/// In a graph, again and again, as layers use them: no two of a kind in a row, and a collective ahead of the first.
TEST_F(Nccl, SendingsOnSharedMemoryBringWhatOthersHave) {
  const Buffer memory("shared", std::int64_t{48} << 20, test_device(), report_),
      workspace("workspace", kSharingBytes, test_device(), report_);
  ASSERT_TRUE(nccl_->share(*world_, {&memory}, workspace));
  const int rank = world_->rank(), other = 1 - rank;
  ASSERT_EQ(world_->size(), 2);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    SCOPED_TRACE(name_of(dtype));
    constexpr std::int64_t kCount = std::int64_t{1} << 20, kHalf = kCount / 2;
    std::int64_t used = 0;
    const auto tensor = [&](std::int64_t count) {
      const Tensor bytes = memory.tensor({memory.bytes()}, DType::u8).slice(used, count * size_of(dtype));
      used += bytes.bytes();
      return Tensor(bytes.data(), {count}, dtype, bytes.device());
    };
    const Tensor guard = tensor(kCount), fulls[] = {tensor(kCount), tensor(kCount)}, whole = tensor(kCount),
                 gathered[] = {tensor(kCount), tensor(kCount)}, inboxes[] = {tensor(kHalf), tensor(kHalf)},
                 inbox = tensor(kCount);
    EXPECT_TRUE(nccl_->sends(whole));
    EXPECT_FALSE(nccl_->sends(whole.slice(0, 64))) << "short";
    const auto values = [&](int of_rank, int seed) { return noise(10 * seed + of_rank, kCount * size_of(dtype)); };
    const auto put = [&](std::vector<std::byte> bytes, const Tensor& to) {
      copy(gpu_, Tensor(bytes.data(), to.shape(), dtype, Device::cpu()), to);
      gpu_.synchronize();
    };
    const auto expect = [&](const Tensor& found, const std::vector<std::byte>& bytes, std::int64_t begin, const char* what) {
      std::vector<std::byte> host(static_cast<std::size_t>(found.bytes()));
      copy(gpu_, found, Tensor(host.data(), found.shape(), dtype, Device::cpu()));
      gpu_.synchronize();
      EXPECT_EQ(std::memcmp(host.data(), bytes.data() + begin * size_of(dtype), host.size()), 0) << what;
    };
    RepeatedWork repeated;
    for (int round = 0; round < 4; ++round) {
      const int seed = 8 * round;
      put(values(rank, seed), whole);
      for (int i = 0; i < 2; ++i) put(values(rank, seed + 1 + i), fulls[i]), put(values(rank, seed + 3 + i), gathered[i]);
      repeated.run(gpu_, [&] {
        nccl_->all_reduce(gpu_, guard);
        for (int turn = 0; turn < 2; ++turn) {
          nccl_->send_whole(gpu_, whole, inbox);
          nccl_->send_parts(gpu_, fulls, inboxes);
          nccl_->send_own(gpu_, gathered);
        }
      });
      expect(inbox, values(other, seed), 0, "whole");
      for (int i = 0; i < 2; ++i) {
        expect(inboxes[i], values(other, seed + 1 + i), rank * kHalf, "the own part of the other's");
        expect(gathered[i].flat(rank * kHalf, kHalf), values(rank, seed + 3 + i), rank * kHalf, "the own part");
        expect(gathered[i].flat(other * kHalf, kHalf), values(other, seed + 3 + i), other * kHalf, "the other's part");
      }
    }
    nccl_->all_reduce(gpu_, guard);
  }
}

}  // namespace
}  // namespace dm
