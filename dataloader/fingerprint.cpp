// Sampled content hashes of data files and the comparison of two data sets in words.
#include "dataloader/fingerprint.h"

#include <algorithm>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "runtime/error.h"
#include "runtime/file.h"
#include "runtime/hash.h"

namespace dm {
namespace {

constexpr std::int64_t kSampleBytes = 64 << 10;
constexpr std::int64_t kSamples = 16;

DataFingerprint::File fingerprint_of(const std::filesystem::path& path) {
  const File file = File::open(path);
  const std::int64_t size = file.size();
  std::string sample;
  Xxh3 hash;
  const auto take = [&](std::int64_t begin, std::int64_t count) {
    sample.resize(static_cast<std::size_t>(count));
    file.read_at(begin, sample.data(), count);
    hash.update(sample.data(), count);
  };
  if (size <= kSamples * kSampleBytes) {
    take(0, size);
  } else {
    const std::int64_t last = size - kSampleBytes;
    for (std::int64_t i = 0; i < kSamples; ++i) {
      // last · i / 15 without overflow
      take(last / (kSamples - 1) * i + last % (kSamples - 1) * i / (kSamples - 1), kSampleBytes);
    }
  }
  return {path.filename().string(), size, hash.hex()};
}

/// The value of `key` as T; throws Error naming it.
template <class T>
T value_of(const nlohmann::json& json, const char* key) {
  try {
    return json.at(key).get<T>();
  } catch (const nlohmann::json::exception&) {
    fail(fmt::format("data fingerprint: \"{}\" is missing or has another type than it must have", key));
  }
}

std::string describe(const DataFingerprint::File& file) {
  return fmt::format("{} ({} bytes)", file.name, file.size);
}

const DataFingerprint::File* find_content(const std::vector<DataFingerprint::File>& files,
                                          const DataFingerprint::File& wanted) {
  const auto found = std::find_if(files.begin(), files.end(), [&](const auto& file) { return file.same_content(wanted); });
  return found == files.end() ? nullptr : &*found;
}

std::string file_difference(const std::vector<DataFingerprint::File>& then, const std::vector<DataFingerprint::File>& now) {
  const auto find_name = [](const auto& files, const std::string& name) {
    return std::find_if(files.begin(), files.end(), [&](const auto& file) { return file.name == name; });
  };
  for (const auto& file : then) {
    if (find_content(now, file)) continue;
    const auto other = find_name(now, file.name);
    if (other == now.end()) return fmt::format("data file {} is missing", describe(file));
    return fmt::format("data file {} was replaced: now it is {} with other content", describe(file), describe(*other));
  }
  for (const auto& file : now) {
    if (!find_content(then, file)) return fmt::format("data file {} is new", describe(file));
  }
  for (std::size_t i = 0; i < std::min(then.size(), now.size()); ++i) {
    if (!then[i].same_content(now[i]))
      return fmt::format("the data files are in another order: place {} was {} and now is {}", i + 1, describe(then[i]),
                         describe(now[i]));
  }
  if (then.size() != now.size())
    return fmt::format("there were {} data files and now are {}: one is listed more or less often", then.size(), now.size());
  return {};
}

}  // namespace

DataFingerprint DataFingerprint::of(const std::vector<std::filesystem::path>& files, const Tokenizer& tokenizer,
                                    double holdout) {
  DataFingerprint fingerprint;
  for (const auto& file : files) fingerprint.files.push_back(fingerprint_of(file));
  fingerprint.tokenizer = tokenizer.hash();
  fingerprint.holdout = holdout;
  return fingerprint;
}

void to_json(nlohmann::json& json, const DataFingerprint& fingerprint) {
  nlohmann::json files = nlohmann::json::array();
  for (const auto& file : fingerprint.files)
    files.push_back({{"name", file.name}, {"size", file.size}, {"hash", file.hash}});
  json = {{"files", std::move(files)}, {"tokenizer", fingerprint.tokenizer}, {"holdout", fingerprint.holdout}};
}

void from_json(const nlohmann::json& json, DataFingerprint& fingerprint) {
  fingerprint = {};
  for (const auto& file : value_of<nlohmann::json::array_t>(json, "files")) {
    fingerprint.files.push_back(
        {value_of<std::string>(file, "name"), value_of<std::int64_t>(file, "size"), value_of<std::string>(file, "hash")});
  }
  fingerprint.tokenizer = value_of<std::string>(json, "tokenizer");
  fingerprint.holdout = value_of<double>(json, "holdout");
}

std::string difference(const DataFingerprint& then, const DataFingerprint& now) {
  if (std::string files = file_difference(then.files, now.files); !files.empty()) return files;
  if (then.tokenizer != now.tokenizer)
    return fmt::format("the tokenizer is another one (hash {}, was {})", now.tokenizer, then.tokenizer);
  if (then.holdout != now.holdout) return fmt::format("holdout is {} and was {}", now.holdout, then.holdout);
  return {};
}

void require_disjoint(const DataFingerprint& train, const DataFingerprint& valid) {
  for (const auto& file : valid.files) {
    const DataFingerprint::File* same = find_content(train.files, file);
    if (same)
      fail(fmt::format("validation file {} has the content of training file {}: remove it from one of the lists", file.name,
                       same->name),
           ExitCode::usage);
  }
}

}  // namespace dm
