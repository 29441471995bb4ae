// The batches of a run as every rank of the grid sees them, its fingerprint, and the validation set.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "dataloader/fingerprint.h"
#include "dataloader/loader.h"
#include "launch/train_options.h"
#include "launch/training_step.h"
#include "parallel/grid.h"
#include "runtime/log.h"

namespace dm {

/// The files, tokenizer and identity of a run's data: known before anything is read.
struct DataSources {
  std::vector<std::filesystem::path> train, valid;
  std::shared_ptr<const Tokenizer> tokenizer;  ///< Null for synthetic data, which has no files either.
  DataFingerprint fingerprint;

  /// Throws Error (usage) for patterns without a match, empty files, a file that is both trained on and held out.
  static DataSources open(const TrainOptions::Data& options);
  /// The least vocabulary that a model needs; for synthetic data what it has when nothing is said.
  std::int64_t vocabulary() const { return tokenizer ? tokenizer->vocabulary() : kSyntheticVocabulary; }

  static constexpr std::int64_t kSyntheticVocabulary = 32000;
};

/// This data rank's part of a step whose first sequence is `first_sequence` of the run, as uniformly random tokens of the
/// model's vocabulary; every sequence is the same on every grid.
Sequences synthetic_step(const TrainOptions& options, const Grid& grid, std::int64_t first_sequence);

/// In each tensor group the first rank loads and the others receive. A failure to read is thrown on the ranks that load.
class TrainingData {
 public:
  /// `options.model.vocabulary` is known; reading starts at `start`. `grid` outlives the data.
  TrainingData(const TrainOptions& options, const DataSources& sources, Grid& grid, const DataState& start);

  /// The next training step. Collective over the tensor group. What was skipped goes to `log` (rank 0 of the grid).
  Sequences& next(Trace& trace, const Log& log);
  /// After the steps that next() has given; the same on every rank that loads, kept by rank 0 in checkpoints.
  const DataState& state() const { return state_; }

  bool has_validation() const { return !sources_.valid.empty() || (options_.data.holdout > 0 && !options_.data.synthetic); }
  /// Reads this rank's part of the first train.valid_sequences validation sequences, where there is validation data. Local.
  /// Throws Error (usage) when there are too few, or they do not divide over the data ranks.
  void read_validation();
  /// What was read. Collective over the tensor group the first time.
  Sequences& validation();

 private:
  LoaderOptions loader_options(bool training) const;
  void share(Stream& stream, Sequences& sequences) const;

  const TrainOptions& options_;
  const DataSources& sources_;
  Grid& grid_;
  std::unique_ptr<Loader> loader_;  // on the first rank of each tensor group
  DataState state_;
  Sequences step_;
  Sequences validation_;
  bool validation_shared_ = false;
};

}  // namespace dm
