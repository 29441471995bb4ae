// A model and its optimizer saved on one grid and loaded on others: nothing changes, and training goes on.
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "parallel/agreement.h"
#include "parallel/checkpoint.h"
#include "runtime/fault.h"
#include "tests/model/model_rank.h"
#include "tests/testing/temporary_directory.h"

namespace dm {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kSequences = 4, kLength = 33;
constexpr double kLearningRate = 3e-3;

class Regrid : public ::testing::Test {
 protected:
  Regrid() {
    if (world_->rank() == 0) owner_ = std::make_unique<TemporaryDirectory>();
    directory_ = broadcast_text(*world_, owner_ ? owner_->path().string() : "", 0);
  }
  ~Regrid() override {
    Stream stream(Device::cpu());
    world_->barrier(stream);
  }

  /// Grids of all ranks from one to the next and back to the first, as tensor sizes.
  std::vector<int> round_trip() const {
    return world_->size() == 4 ? std::vector<int>{2, 4, 1, 2} : std::vector<int>{world_->size(), 1, world_->size()};
  }
  std::unique_ptr<ModelRank> rank_of(int tensor_size) const {
    return std::make_unique<ModelRank>(config_, Grid::make(make_mpi_communicator(), tensor_size), open_specs(config_));
  }
  Checkpoint save(ModelRank& rank, int step) const {
    FaultInjector none;
    return Checkpoint::open(save_checkpoint(*world_, directory_, step, rank.optimizer().pieces_to_save(rank.stream()),
                                            {{"updates", *rank.optimizer().updates().as<std::int32_t>()}}, none));
  }
  static void load(const Checkpoint& checkpoint, ModelRank& rank) {
    // So that nothing of the initialisation is left over.
    for (int block = 0; block < rank.store().partition().blocks(); ++block) {
      fill(rank.stream(), rank.store().values(block), std::nanf(""));
    }
    checkpoint.load(rank.optimizer().pieces_to_load());
    rank.optimizer().finish_load(rank.stream());
    *rank.optimizer().updates().as<std::int32_t>() = checkpoint.metadata().at("updates").get<std::int32_t>();
  }
  std::vector<ModelRank::Result> train(ModelRank& rank, int first, int last) const {
    std::vector<ModelRank::Result> results;
    for (int number = first; number <= last; ++number) {
      const Batch batch = Batch::random(static_cast<std::uint64_t>(number), kSequences, kLength, config_.vocabulary);
      results.push_back(rank.reduced_gradients(batch, 1, {}));
      rank.update(results.back(), kLearningRate);
    }
    return results;
  }

  ModelConfig config_ = small_config(2);
  std::unique_ptr<Communicator> world_ = make_mpi_communicator();
  std::unique_ptr<TemporaryDirectory> owner_;
  fs::path directory_;
};

/// All of values and moments by parameter and kind; of a rank alone.
std::map<std::pair<std::string, StateKind>, std::vector<float>> state_of(ModelRank& one) {
  std::map<std::pair<std::string, StateKind>, std::vector<float>> state;
  for (const StatePiece& piece : one.optimizer().pieces_to_save(one.stream())) {
    std::vector<float>& all = state[{piece.parameter, piece.kind}];
    all.insert(all.end(), piece.data.as<float>(), piece.data.as<float>() + piece.data.numel());
  }
  return state;
}

TEST_F(Regrid, ValuesAndMomentsAreUnchangedAfterEveryHop) {
  const std::vector<int> grids = round_trip();
  auto rank = rank_of(grids[0]);
  train(*rank, 1, 3);
  ModelRank truth(config_), trained_alone(config_);
  load(save(*rank, 1), truth);
  const auto expected = state_of(truth);
  train(trained_alone, 1, 3);
  for (const auto& [key, values] : state_of(trained_alone)) {
    EXPECT_LT(relative_error(expected.at(key), values), 1e-4) << key.first << " " << name_of(key.second);
  }

  for (std::size_t hop = 1; hop < grids.size(); ++hop) {
    const Checkpoint checkpoint = save(*rank, static_cast<int>(hop));
    auto next = rank_of(grids[hop]);
    load(checkpoint, *next);
    for (const ParameterStore::Entry& entry : next->store().entries()) {
      const std::vector<float>& values = expected.at({entry.spec.name, StateKind::value});
      std::int64_t differences = 0;
      for_each_element(next->store(), entry, entry.range, [&](std::int64_t flat, std::int64_t global) {
        const float found = next->store().parameter(entry.spec.name).value.as<float>()[flat - entry.range.begin];
        differences += found == values[static_cast<std::size_t>(global)] ? 0 : 1;
      });
      EXPECT_EQ(differences, 0) << entry.spec.name << " on tensor size " << grids[hop];
    }
    rank = std::move(next);
    ModelRank one(config_);
    load(save(*rank, 100 + static_cast<int>(hop)), one);
    EXPECT_EQ(state_of(one), expected) << "on tensor size " << grids[hop];
  }
}

TEST_F(Regrid, TrainingGoesOnBitForBitAfterTheRoundTrip) {
  const std::vector<int> grids = round_trip();
  auto uninterrupted = rank_of(grids[0]);
  train(*uninterrupted, 1, 3);
  Checkpoint checkpoint = save(*uninterrupted, 1);
  std::unique_ptr<ModelRank> rank;
  for (std::size_t hop = 1; hop < grids.size(); ++hop) {
    rank = rank_of(grids[hop]);
    load(checkpoint, *rank);
    checkpoint = save(*rank, 1 + static_cast<int>(hop));
  }
  const auto expected = train(*uninterrupted, 4, 6), found = train(*rank, 4, 6);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(found[i].loss, expected[i].loss);
    EXPECT_EQ(found[i].gradient_norm, expected[i].gradient_norm);
  }
  for (const ParameterStore::Entry& entry : rank->store().entries()) {
    EXPECT_EQ(rank->value(entry.spec.name), uninterrupted->value(entry.spec.name)) << entry.spec.name;
  }
}

TEST_F(Regrid, AnotherGridGoesOnWithTheSameLosses) {
  const std::vector<int> grids = round_trip();
  auto uninterrupted = rank_of(grids[0]);
  train(*uninterrupted, 1, 3);
  const Checkpoint checkpoint = save(*uninterrupted, 1);
  auto rank = rank_of(grids[1]);
  load(checkpoint, *rank);
  const auto expected = train(*uninterrupted, 4, 6), found = train(*rank, 4, 6);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_NEAR(found[i].loss / expected[i].loss, 1, 1e-5);
    EXPECT_NEAR(found[i].gradient_norm / expected[i].gradient_norm, 1, 1e-4);
  }
}

}  // namespace
}  // namespace dm
