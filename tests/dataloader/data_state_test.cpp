// The data state and the fingerprint as JSON that nobody can be trusted with, and the words for other data.
#include "dataloader/data_state.h"

#include <functional>

#include <gtest/gtest.h>

#include "dataloader/fingerprint.h"
#include "runtime/error.h"
#include "tests/dataloader/small_data.h"
#include "tests/testing/mutate.h"
#include "tests/testing/temporary_directory.h"

namespace dm {
namespace {

const DataState kState{8, 2048, 1, 2, 33, 4444, 55, 6, 7};

TEST(DataStateJson, RoundTrips) {
  const nlohmann::json json = kState;
  EXPECT_EQ(json.size(), 9u);
  EXPECT_EQ(nlohmann::json::parse(json.dump()).get<DataState>(), kState);
}

TEST(DataStateJson, NamesWhatIsWrong) {
  const auto refused = [](const std::function<void(nlohmann::json&)>& change, const std::string& words) {
    nlohmann::json json = kState;
    change(json);
    const std::string message = error_of([&] { json.get<DataState>(); });
    EXPECT_NE(message.find(words), std::string::npos) << message;
  };
  refused([](auto& json) { json.erase("line"); }, "\"line\" is missing");
  refused([](auto& json) { json["more"] = 1; }, "unknown key \"more\"");
  refused([](auto& json) { json["file"] = -1; }, "\"file\" must be");
  refused([](auto& json) { json["file"] = 1.5; }, "\"file\" must be");
  refused([](auto& json) { json["file"] = "1"; }, "\"file\" must be");
  refused([](auto& json) { json["file"] = UINT64_MAX; }, "\"file\" must be");
  refused([](auto& json) { json = nlohmann::json::array({1}); }, "not a JSON object");
}

TEST(DataStateJson, SurvivesMutations) {
  std::mt19937 random(1);
  const std::string text = nlohmann::json(kState).dump();
  for (int round = 0; round < 5000; ++round) {
    const auto json = nlohmann::json::parse(mutate(text, random), nullptr, false);
    if (json.is_discarded()) continue;
    try {
      const auto state = json.get<DataState>();
      EXPECT_GE(std::min({state.sequences, state.file, state.offset, state.token}), 0);
    } catch (const Error&) {
    }
  }
}

class Fingerprint : public testing::Test {
 protected:
  Fingerprint() {
    std::mt19937_64 random(2);
    big_.resize(3 << 20);
    for (char& byte : big_) byte = static_cast<char>(random());
  }
  DataFingerprint of(const std::vector<std::pair<std::string, std::string>>& files, const std::string& tokenizer = "bytes") {
    std::vector<std::filesystem::path> paths;
    for (const auto& [name, bytes] : files) paths.push_back(put_file(directory_.path(), name, bytes));
    return DataFingerprint::of(paths, *make_tokenizer(tokenizer));
  }

  TemporaryDirectory directory_;
  std::string big_;
};

TEST_F(Fingerprint, RoundTripsAndIgnoresNames) {
  const auto then = of({{"a", "aaa"}, {"b", big_}});
  EXPECT_EQ(nlohmann::json::parse(nlohmann::json(then).dump()).get<DataFingerprint>(), then);
  EXPECT_EQ(difference(then, then), "");
  EXPECT_EQ(difference(then, of({{"c", "aaa"}, {"d", big_}})), "") << "renamed files are the same files";
}

TEST_F(Fingerprint, SeesChangesAtBothEnds) {
  const auto then = of({{"a", big_}});
  for (const std::size_t at : {std::size_t{0}, big_.size() - 1}) {
    std::string changed = big_;
    changed[at] = static_cast<char>(changed[at] + 1);
    EXPECT_NE(of({{"a", changed}}).files[0].hash, then.files[0].hash);
  }
  EXPECT_FALSE(of({{"a", big_ + "x"}}).files[0].same_content(then.files[0]));
}

TEST_F(Fingerprint, SaysWhatDiffers) {
  const auto then = of({{"a", "aaa"}, {"b", "bbb"}});
  const auto expect = [&](const DataFingerprint& now, const std::string& words) {
    EXPECT_NE(difference(then, now).find(words), std::string::npos) << difference(then, now);
  };
  expect(of({{"a", "aaa"}}), "b (3 bytes) is missing");
  expect(of({{"a", "aaa"}, {"b", "xx"}}), "b (3 bytes) was replaced: now it is b (2 bytes)");
  expect(of({{"b", "bbb"}, {"a", "aaa"}}), "in another order: place 1 was a");
  expect(of({{"a", "aaa"}, {"b", "bbb"}, {"c", "c"}}), "c (1 bytes) is new");
  expect(of({{"a", "aaa"}, {"b", "bbb"}, {"c", "aaa"}}), "there were 2 data files and now are 3");
  auto other = of({{"a", "aaa"}, {"b", "bbb"}});
  other.tokenizer = "0123";
  expect(other, "the tokenizer is another one (hash 0123, was bytes)");
  other = of({{"a", "aaa"}, {"b", "bbb"}});
  other.holdout = 0.5;
  expect(other, "holdout is 0.5 and was 0");
}

TEST_F(Fingerprint, FindsAFileInTrainingAndValidation) {
  const auto train = of({{"a", "aaa"}, {"b", "bbb"}});
  require_disjoint(train, of({{"v", "vvv"}}));
  const std::string message = error_of([&] { require_disjoint(train, of({{"v", "vvv"}, {"w", "bbb"}})); });
  EXPECT_NE(message.find("validation file w has the content of training file b"), std::string::npos) << message;
}

TEST_F(Fingerprint, JsonSurvivesMutationsAndNamesKeys) {
  const auto good = of({{"a", "aaa"}, {"b", "bbb"}});
  nlohmann::json json = good;
  json["files"][0].erase("size");
  EXPECT_NE(error_of([&] { json.get<DataFingerprint>(); }).find("\"size\""), std::string::npos);
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    const auto mutated = nlohmann::json::parse(mutate(nlohmann::json(good).dump(), random), nullptr, false);
    if (mutated.is_discarded()) continue;
    try {
      difference(good, mutated.get<DataFingerprint>());
    } catch (const Error&) {
    }
  }
}

}  // namespace
}  // namespace dm
