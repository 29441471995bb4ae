// The group of one, groups on paper, and arguments that every transport refuses.
#include "parallel/communicator.h"

#include <memory>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/parallel/idle_communicator.h"

namespace dm {
namespace {

Tensor planned(Shape shape, DType dtype = DType::f32) {
  return Tensor(nullptr, shape, dtype, Device::plan());
}

TEST(SelfCommunicator, CopiesAndCounts) {
  Trace trace;
  Stream stream(Device::cpu(), &trace);
  const auto self = make_self_communicator();
  std::vector<float> from{1, 2, 3};
  std::vector<float> to(3);
  self->reduce_scatter(stream, Tensor::of(from.data(), {3}), Tensor::of(to.data(), {3}));
  EXPECT_EQ(to, from);
  to.assign(3, 0.0f);
  self->all_gather(stream, Tensor::of(from.data(), {3}), Tensor::of(to.data(), {3}));
  EXPECT_EQ(to, from);
  self->all_gather(stream, Tensor::of(from.data(), {3}), Tensor::of(from.data(), {3}));
  self->all_reduce(stream, Tensor::of(from.data(), {3}), ReduceOp::max);
  self->broadcast(stream, Tensor::of(from.data(), {3}), 0);
  self->barrier(stream);
  EXPECT_EQ(from, to);
  EXPECT_EQ(self->counters().calls, 6);
  EXPECT_EQ(self->counters().bytes, 5 * 12);
  EXPECT_EQ(trace.entries().size(), 5u);
  EXPECT_EQ(self->split(0, 0, "part")->name(), "part");
}

TEST(SelfCommunicator, GroupsOnPaperServePlanningStreamsOnly) {
  const auto paper = make_self_communicator(2, 4, "tensor");
  EXPECT_EQ(paper->rank(), 2);
  EXPECT_EQ(paper->size(), 4);
  Stream plan(Device::plan());
  paper->all_reduce(plan, planned({7}));
  paper->all_gather(plan, planned({2}), planned({8}));
  paper->reduce_scatter(plan, planned({8}), planned({2}));
  EXPECT_THROW(paper->all_gather(plan, planned({2}), planned({7})), Error);
  EXPECT_THROW(paper->broadcast(plan, planned({2}), 4), Error);
  EXPECT_EQ(paper->counters().calls, 0);

  Stream host(Device::cpu());
  std::vector<float> data(4);
  EXPECT_THROW(paper->all_reduce(host, Tensor::of(data.data(), {4})), Error);
  EXPECT_THROW(paper->barrier(host), Error);
  EXPECT_THROW(make_self_communicator(4, 4), Error);
  EXPECT_THROW(make_self_communicator(0, 0), Error);
}

/// Its memory is shared with the other rank's.
class Sender final : public IdleCommunicator {
 public:
  Sender() : IdleCommunicator("tensor") {}

 protected:
  void do_send_parts(Stream&, std::span<const Tensor>, std::span<const Tensor>) override {}
  void do_send_own(Stream&, std::span<const Tensor>) override {}
};

TEST(Communicator, SendingsAreOfDifferentKindsInARowAndTheirInboxesFit) {
  Stream stream(Device::cpu());
  Sender pair;
  std::vector<float> data(8), inbox(8);
  const std::vector<Tensor> full{Tensor::of(data.data(), {8})}, half{Tensor::of(inbox.data(), {1, 4})};
  EXPECT_FALSE(pair.sends(full[0]));
  pair.send_parts(stream, full, half);
  EXPECT_THROW(pair.send_parts(stream, full, half), Error);
  pair.send_own(stream, full);
  EXPECT_THROW(pair.send_own(stream, full), Error);
  EXPECT_EQ(pair.counters().calls, 2);
  EXPECT_EQ(pair.counters().bytes, 32 + 16);
  pair.all_reduce(stream, full[0]);
  pair.send_own(stream, full);

  EXPECT_THROW(pair.send_parts(stream, full, full), Error) << "an inbox of the whole";
  EXPECT_THROW(pair.send_parts(stream, full, std::vector<Tensor>{}), Error);
  EXPECT_THROW(pair.send_own(stream, std::vector<Tensor>{Tensor::of(data.data(), {7})}), Error);
  EXPECT_THROW(pair.send_whole(stream, full[0], half[0]), Error);
  EXPECT_THROW(pair.send_whole(stream, full[0], Tensor::of(inbox.data(), {8})), Error) << "not in this group";
}

TEST(Communicator, RefusesArgumentsThatContradictOneAnother) {
  Stream stream(Device::cpu());
  const auto self = make_self_communicator();
  std::vector<float> data(8);
  std::vector<std::int32_t> integers(8);
  std::vector<std::uint8_t> bytes(8);
  const Tensor full = Tensor::of(data.data(), {8});
  EXPECT_THROW(self->all_reduce(stream, Tensor()), Error);
  EXPECT_THROW(self->all_reduce(stream, planned({8})), Error);
  EXPECT_THROW(self->all_reduce(stream, Tensor::of(bytes.data(), {8})), Error);
  EXPECT_THROW(self->broadcast(stream, full, 1), Error);
  EXPECT_THROW(self->broadcast(stream, full, -1), Error);
  EXPECT_THROW(self->all_gather(stream, full.flat(0, 4), full), Error);
  EXPECT_THROW(self->all_gather(stream, Tensor::of(integers.data(), {8}), full), Error);
  EXPECT_THROW(self->reduce_scatter(stream, Tensor::of(bytes.data(), {4}), Tensor::of(bytes.data() + 4, {4})), Error);
  EXPECT_THROW(self->reduce_scatter(stream, full.flat(0, 6), full.flat(1, 6)), Error);
  EXPECT_EQ(self->counters().calls, 0);
  self->reduce_scatter(stream, full.flat(0, 4), full.flat(4, 4));
}

TEST(Communicator, ErrorsNameTheOperationAndTheGroup) {
  Stream stream(Device::cpu());
  const auto self = make_self_communicator(0, 1, "data");
  std::vector<float> data(8);
  try {
    self->reduce_scatter(stream, Tensor::of(data.data(), {8}), Tensor::of(data.data(), {3}));
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "reduce_scatter of group data: full has 8 elements, which is not 1 ranks times a shard of 3");
  }
}

}  // namespace
}  // namespace dm
