// Any grid of ranks trains as one rank does: every gradient, ten steps of losses and norms; and the proof that it would
// show. On the CPU over MPI, or on a GPU for each rank over NCCL (tests/testing/device.h).
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "tests/model/model_rank.h"
#include "tests/testing/device.h"

namespace dm {
namespace {

constexpr double kTolerance = 1e-5;
/// Of gradient norms after some steps: AdamW makes full steps of tiny gradients, and so enlarges their rounding.
constexpr double kLaterNormTolerance = 1e-4;
constexpr std::int64_t kSequences = 8, kLength = 37;  // a step's batch; more than one chunk of the scan
constexpr double kLearningRate = 3e-3;

/// A data × tensor grid and the micro-batches that each data rank cuts its share of a step into.
struct Layout {
  int data, tensor, accumulation;

  std::int64_t micro() const { return kSequences / data / accumulation; }
};

std::vector<Layout> layouts_on(int ranks) {
  std::vector<Layout> layouts;
  for (int tensor = 1; tensor <= ranks; tensor *= 2) {
    for (const int accumulation : {1, 2}) layouts.push_back({ranks / tensor, tensor, accumulation});
  }
  return layouts;
}

Batch step_batch(int number) {
  return Batch::random(static_cast<std::uint64_t>(100 + number), kSequences, kLength, small_config(0).vocabulary);
}

/// Passes collectives on to a group that others use too, except one sum (all-reduce or reduce-scatter), one gather or every
/// reduce-scatter if told to forget it, which it then leaves out on every rank.
class ForgetfulCommunicator final : public Communicator {
 public:
  static constexpr int kNothing = -1, kReduceScatter = -2;

  explicit ForgetfulCommunicator(Communicator& group, int forgotten_sum = kNothing, int forgotten_gather = kNothing)
      : Communicator(group.rank(), group.size(), group.name(), nullptr),
        group_(group),
        forgotten_sum_(forgotten_sum),
        forgotten_gather_(forgotten_gather) {}

  std::unique_ptr<Communicator> split(int color, int key, std::string name) override {
    return group_.split(color, key, std::move(name));
  }
  void abort(int exit_code) override { group_.abort(exit_code); }

 protected:
  void do_all_reduce(Stream& stream, const Tensor& tensor, ReduceOp op) override {
    if (sums_++ != forgotten_sum_) group_.all_reduce(stream, tensor, op);
  }
  void do_reduce_scatter(Stream& stream, const Tensor& full, const Tensor& shard) override {
    if (sums_++ != forgotten_sum_ && forgotten_sum_ != kReduceScatter) group_.reduce_scatter(stream, full, shard);
  }
  void do_all_gather(Stream& stream, const Tensor& shard, const Tensor& full) override {
    if (gathers_++ != forgotten_gather_) group_.all_gather(stream, shard, full);
  }
  void do_broadcast(Stream& stream, const Tensor& tensor, int root) override { group_.broadcast(stream, tensor, root); }
  void do_barrier(Stream& stream) override { group_.barrier(stream); }

 private:
  Communicator& group_;
  int forgotten_sum_, forgotten_gather_;
  int sums_ = 0, gathers_ = 0;
};

/// The job's ranks in tensor groups of every size, each grid made once: a start over NCCL takes a second.
class Grids : public ::testing::Environment {
 public:
  /// Members that pass on to the one grid of that size.
  Grid of(int tensor_size) {
    if (!grids_.contains(tensor_size)) {
      grids_.emplace(tensor_size, Grid::make(make_mpi_communicator(), tensor_size, test_device()));
    }
    const Grid& one = grids_.at(tensor_size);
    const auto borrow = [](const std::unique_ptr<Communicator>& group) {
      return group ? std::make_unique<ForgetfulCommunicator>(*group) : nullptr;
    };
    return {.world = borrow(one.world),
            .data = borrow(one.data),
            .tensor = borrow(one.tensor),
            .host_data = borrow(one.host_data),
            .host_tensor = borrow(one.host_tensor)};
  }
  void TearDown() override { grids_.clear(); }  // While MPI is up.

 private:
  std::map<int, Grid> grids_;
};
Grids* const grids = static_cast<Grids*>(::testing::AddGlobalTestEnvironment(new Grids));

/// This process's rank of a grid.
ModelRank rank_of(const ModelConfig& config, Grid grid) {
  return ModelRank(config, std::move(grid), open_specs(config), {.clip = kClip}, test_device());
}

/// Largest over the parameters of ‖gradient − reference's‖ / ‖reference's‖, of the slices that the ranks own after
/// reduction; and its parameter. The same answer on every rank.
std::pair<double, std::string> worst_gradient(ModelRank& rank, const ModelRank& reference) {
  const ParameterStore& store = rank.store();
  const std::vector<float> found = rank.gradients();
  std::vector<float> squared_errors;
  for (const ParameterStore::Entry& entry : store.entries()) {
    const std::vector<float> expected = reference.gradient(entry.spec.name);
    double squares = 0;
    for_each_element(store, entry, store.partition().owned(entry.spec.block), [&](std::int64_t flat, std::int64_t global) {
      const double error = static_cast<double>(found[static_cast<std::size_t>(flat)]) -
                           static_cast<double>(expected[static_cast<std::size_t>(global)]);
      squares += error * error;
    });
    squared_errors.push_back(static_cast<float>(squares));
  }
  Stream host(Device::cpu());
  rank.grid().world->all_reduce(host, Tensor::of(squared_errors.data(), {std::ssize(squared_errors)}));
  std::pair<double, std::string> worst{0, ""};
  for (std::size_t i = 0; i < squared_errors.size(); ++i) {
    const std::string& name = store.entries()[i].spec.name;
    double squares = 0;
    for (const float g : reference.gradient(name)) squares += static_cast<double>(g) * static_cast<double>(g);
    EXPECT_GT(squares, 0) << name << " has no gradient to compare";
    const double error = std::sqrt(static_cast<double>(squared_errors[i]) / squares);
    if (!(error <= worst.first)) worst = {error, name};
  }
  return worst;
}

/// Whether rank 0 of `group`, which is one for host tensors, and this rank hold the same bits.
template <class T>
bool same_as_first(Communicator& group, const std::vector<T>& mine) {
  Stream host(Device::cpu());
  std::vector<T> theirs = mine;
  group.broadcast(host, Tensor::of(theirs.data(), {std::ssize(theirs)}), 0);
  return std::memcmp(theirs.data(), mine.data(), mine.size() * sizeof(T)) == 0;
}

/// Dense depth and recompute, on every layout that the world admits.
class Equivalence : public ::testing::TestWithParam<std::tuple<std::int64_t, Recompute>> {
 protected:
  using Result = ModelRank::Result;

  /// Calls check(rank, micro-batch) on every layout.
  template <class Check>
  void on_every_layout(const Check& check) {
    for (const Layout& layout : layouts_on(make_mpi_communicator()->size())) {
      ModelRank rank = rank_of(config_, grids->of(layout.tensor));
      SCOPED_TRACE(rank.grid().describe() + ", accumulation " + std::to_string(layout.accumulation));
      check(rank, layout.micro());
    }
  }
  static void expect_alike(const Result& found, const Result& expected, double norm_tolerance) {
    EXPECT_NEAR(found.loss / expected.loss, 1, kTolerance);
    EXPECT_NEAR(found.gradient_norm / expected.gradient_norm, 1, norm_tolerance);
  }

  ModelConfig config_ = small_config(std::get<0>(GetParam()));
  ModelRank::Options options_{.recompute = std::get<1>(GetParam())};
};

TEST_P(Equivalence, EveryGradientIsThatOfOneRank) {
  ModelRank one(config_, test_device());
  const Batch batch = step_batch(1);
  const Result expected = one.reduced_gradients(batch, kSequences, {});
  on_every_layout([&](ModelRank& rank, std::int64_t micro) {
    expect_alike(rank.reduced_gradients(batch, micro, options_), expected, kTolerance);
    const auto [error, name] = worst_gradient(rank, one);
    EXPECT_LT(error, kTolerance) << name;
    EXPECT_NEAR(rank.evaluate(batch) / expected.loss, 1, kTolerance);
  });
}

TEST_P(Equivalence, TenStepsFollowOneRank) {
  ModelRank one(config_, test_device());
  std::vector<Result> expected;
  for (int number = 1; number <= 10; ++number) {
    expected.push_back(one.reduced_gradients(step_batch(number), kSequences, {}));
    one.update(expected.back(), kLearningRate);
    EXPECT_GT(expected.back().gradient_norm, kClip) << "clipping is part of what is compared";
  }
  on_every_layout([&](ModelRank& rank, std::int64_t micro) {
    for (int number = 1; number <= 10; ++number) {
      const Result found = rank.reduced_gradients(step_batch(number), micro, options_);
      rank.update(found, kLearningRate);
      expect_alike(found, expected[static_cast<std::size_t>(number) - 1], kLaterNormTolerance);
      const std::vector<float> decisive{static_cast<float>(found.loss), static_cast<float>(found.gradient_norm)};
      EXPECT_TRUE(same_as_first(*rank.grid().world, decisive));
    }
    EXPECT_TRUE(same_as_first(rank.grid().data_on_host(), rank.values())) << "values differ between data ranks";
    for (const ParameterStore::Entry& entry : rank.store().entries()) {
      if (entry.spec.shard.axis != Shard::Axis::none) continue;
      EXPECT_TRUE(same_as_first(rank.grid().tensor_on_host(), rank.value(entry.spec.name)))
          << entry.spec.name << " differs between tensor ranks";
    }
  });
}

std::string name_of_case(const ::testing::TestParamInfo<Equivalence::ParamType>& info) {
  const auto [depth, recompute] = info.param;
  return "Depth" + std::to_string(depth) +
         (recompute == Recompute::none    ? ""
          : recompute == Recompute::block ? "Block"
                                          : "Selective");
}

INSTANTIATE_TEST_SUITE_P(Model, Equivalence,
                         ::testing::Combine(::testing::Values(0, 2),
                                            ::testing::Values(Recompute::none, Recompute::selective, Recompute::block)),
                         name_of_case);

constexpr int kParts = Parts::kMost;
/// Sums of a micro-batch: of both halves the embedding's, in each of three layers x_proj's and out_proj's, and the head's;
/// then, backwards, in each layer that of x_proj's and fc1's cotangents, and of both halves that of the layer's input; last
/// the norms' weights'.
constexpr int kSums = kParts + 3 * 2 * kParts + kParts + 3 * (1 + kParts) + 1;
/// Gathers: each norm's output, the loss's three numbers a token, each norm's cotangent.
constexpr int kGathers = 4 * kParts + 1 + 4 * kParts;

TEST(EquivalenceItself, AnyForgottenTransferShows) {
  const ModelConfig config = small_config(2);
  ModelRank one(config, test_device());
  one.reduced_gradients(step_batch(1), kSequences, {});
  const auto error_without = [&](int sum, int gather, int tensor_size) {
    const Grid whole = grids->of(tensor_size);
    Grid grid = grids->of(tensor_size);
    (tensor_size == 1 ? grid.data : grid.tensor) =
        std::make_unique<ForgetfulCommunicator>(tensor_size == 1 ? *whole.data : *whole.tensor, sum, gather);
    ModelRank rank = rank_of(config, std::move(grid));
    rank.reduced_gradients(step_batch(1), kSequences / rank.grid().data->size(), {});
    return worst_gradient(rank, one).first;
  };
  const int ranks = make_mpi_communicator()->size();
  constexpr int kNothing = ForgetfulCommunicator::kNothing;
  EXPECT_GT(error_without(ForgetfulCommunicator::kReduceScatter, kNothing, 1), 0.1);
  for (int sum = 0; sum < kSums; ++sum) {
    EXPECT_GT(error_without(sum, kNothing, ranks), 100 * kTolerance) << "sum " << sum << " of " << kSums;
  }
  for (int gather = 0; gather < kGathers; ++gather) {
    EXPECT_GT(error_without(kNothing, gather, ranks), 100 * kTolerance) << "gather " << gather << " of " << kGathers;
  }
  EXPECT_LT(error_without(kSums, kGathers, ranks), kTolerance) << "nothing is forgotten: sum " << kSums << " is the norm's";
}

TEST(TensorParallel, RecomputationDoesNotCommunicate) {
  const ModelConfig config = small_config(2);
  std::vector<std::pair<std::int64_t, std::int64_t>> counts;
  for (const Recompute recompute : {Recompute::none, Recompute::selective, Recompute::block}) {
    ModelRank rank = rank_of(config, grids->of(make_mpi_communicator()->size()));
    rank.forward_backward(step_batch(1), {.recompute = recompute});
    const CommunicatorCounters& counters = rank.grid().tensor->counters();
    counts.emplace_back(counters.calls, counters.bytes);
  }
  EXPECT_EQ(counts[0], counts[1]);
  EXPECT_EQ(counts[0], counts[2]);
  EXPECT_EQ(counts[0].first, kSums + kGathers);
}

TEST(TensorParallel, RowsThatTheRanksDoNotDivide) {
  const ModelConfig config = small_config(2);
  const Batch batch = Batch::random(/*seed=*/3, /*sequences=*/1, kLength, config.vocabulary);
  ModelRank one(config, test_device());
  const ModelRank::Result expected = one.reduced_gradients(batch, 1, {});
  ModelRank rank = rank_of(config, grids->of(make_mpi_communicator()->size()));
  ASSERT_NE(kLength % rank.grid().tensor->size(), 0);
  EXPECT_NEAR(rank.reduced_gradients(batch, 1, {}).loss / expected.loss, 1, kTolerance);
  const auto [error, name] = worst_gradient(rank, one);
  EXPECT_LT(error, kTolerance) << name;
}

TEST(TensorParallel, RecomputeAndASecondRunGiveTheSameBits) {
  const ModelConfig config = small_config(2);
  std::vector<std::vector<float>> gradients;
  for (const Recompute recompute : {Recompute::none, Recompute::none, Recompute::selective, Recompute::block}) {
    ModelRank rank = rank_of(config, grids->of(make_mpi_communicator()->size()));
    rank.forward_backward(step_batch(1), {.recompute = recompute});
    gradients.push_back(rank.gradients());
  }
  for (std::size_t run = 1; run < gradients.size(); ++run) EXPECT_EQ(gradients[run], gradients[0]) << "run " << run;
}

}  // namespace
}  // namespace dm
