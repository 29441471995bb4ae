// The training table and every preset: they parse, round-trip, and describe the models and recipes that they name.
#include "launch/train_options.h"

#include <gtest/gtest.h>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "runtime/error.h"
#include "runtime/file.h"

namespace dm {
namespace {

std::filesystem::path configs() {
  return std::filesystem::path(DM_SOURCE_DIR) / "configs";
}

TrainOptions preset(const std::string& name) {
  TrainOptions options;
  const std::filesystem::path path = configs() / (name + ".cfg");
  make_train_table(options).parse_config(read_file(path), path.string());
  return options;
}

/// Parameters of "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" at a vocabulary of 50,280.
const std::map<std::string, std::int64_t> kParameters = {
    {"130m", 129'135'360}, {"370m", 371'516'416}, {"790m", 793'204'224}, {"1.4b", 1'372'178'432}, {"2.8b", 2'768'345'600}};

TEST(Presets, AreTheKnownOnes) {
  std::set<std::string> expected = {"quickstart", "quickstart-mamba"}, found;
  for (const auto& [size, parameters] : kParameters) expected.insert({"mamba-" + size, "densemamba-" + size});
  for (const auto& entry : std::filesystem::directory_iterator(configs())) found.insert(entry.path().stem().string());
  EXPECT_EQ(found, expected);
}

TEST(Presets, MambaHasThePublishedParameters) {
  for (const auto& [size, parameters] : kParameters) {
    TrainOptions options = preset("mamba-" + size);
    options.model.resolve();
    EXPECT_EQ(options.model.dense_depth, 0) << size;
    EXPECT_EQ(options.model.parameters(), parameters) << size;
  }
}

// The dense gates add G·C + 2C·G a layer above the first, and LLaMA's vocabulary has fewer rows.
TEST(Presets, DenseMambaAddsOnlyGates) {
  for (const auto& [size, parameters] : kParameters) {
    TrainOptions options = preset("densemamba-" + size);
    ModelConfig& model = options.model;
    model.resolve();
    EXPECT_EQ(model.dense_depth, 2) << size;
    const std::int64_t gates = (model.layers - 1) * (model.d_model / 32) * 3 * model.d_model;
    EXPECT_EQ(model.parameters(), parameters + gates - (50'280 - 32'000) * model.d_model) << size;
  }
}

TEST(Presets, FollowTheirRecipes) {
  for (const auto& [size, parameters] : kParameters) {
    for (const std::string kind : {"mamba", "densemamba"}) {
      const TrainOptions options = preset(kind + "-" + size);
      const std::int64_t tokens = options.train.batch * options.train.sequence;
      const bool large = parameters > 1'000'000'000 && kind == "mamba";
      EXPECT_EQ(options.train.sequence, 2048);
      EXPECT_EQ(tokens, large ? 1 << 20 : 1 << 19) << kind << size;
      const double total = kind == "mamba" ? 300e9 : 15e9;
      EXPECT_NEAR(static_cast<double>(tokens * options.train.steps), total, static_cast<double>(tokens)) << kind << size;
      if (kind == "densemamba") {
        EXPECT_NEAR(static_cast<double>(options.optimizer.warmup_steps), 0.015 * static_cast<double>(options.train.steps),
                    1);
      } else {
        EXPECT_NEAR(static_cast<double>(options.optimizer.warmup_steps * tokens), 375e6, static_cast<double>(tokens));
      }
      EXPECT_EQ(options.train.batch % options.train.micro_batch, 0);
    }
  }
}

TEST(Presets, QuickstartsDifferInDenseDepthOnly) {
  TrainOptions dense = preset("quickstart"), plain = preset("quickstart-mamba");
  EXPECT_EQ(dense.model.dense_depth, 2);
  EXPECT_EQ(plain.model.dense_depth, 0);
  plain.model.dense_depth = dense.model.dense_depth;
  EXPECT_EQ(make_train_table(plain).values(), make_train_table(dense).values());
}

TEST(TrainTable, PresetsRoundTripThroughPrintConfig) {
  for (const auto& entry : std::filesystem::directory_iterator(configs())) {
    TrainOptions options = preset(entry.path().stem().string()), again;
    std::ostringstream printed;
    make_train_table(options).print_config(printed);
    OptionTable table = make_train_table(again);
    table.parse_config(printed.str(), "printed");
    EXPECT_EQ(table.values(), make_train_table(options).values()) << entry.path();
  }
}

TEST(TrainTable, PresetsAreFoundByName) {
  TrainOptions options;
  std::ostringstream out;
  const char* words[] = {"--config", "densemamba-370m", "--inject", "rank=0,step=1,point=forward,fault=kill"};
  EXPECT_EQ(make_train_table(options).parse(4, words, out), ParseOutcome::run);
  EXPECT_EQ(options.model.d_model, 1024);
  EXPECT_EQ(options.run.inject, "rank=0,step=1,point=forward,fault=kill");
}

TEST(TrainTable, DefaultsAreInsideTheirRanges) {
  TrainOptions options;
  OptionTable table = make_train_table(options);
  EXPECT_NO_THROW(table.set_values(table.values(), "defaults"));
}

}  // namespace
}  // namespace dm
