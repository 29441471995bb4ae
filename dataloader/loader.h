// Batches of packed sequences for one data rank, prepared ahead by threads.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dataloader/data_state.h"
#include "dataloader/source.h"
#include "dataloader/tokenizer.h"

namespace dm {

struct LoaderOptions {
  SourceOptions source;  ///< For training set `source.repeat`.
  std::shared_ptr<const Tokenizer> tokenizer;
  std::int64_t vocabulary = 0;  ///< Ids the model knows; a token outside is an Error. 0: the tokenizer's.
  std::int64_t sequence = 0;    ///< T: tokens a sequence.
  std::int64_t batch = 0;       ///< Sequences a step over all data ranks; a multiple of `world`.
  int rank = 0;                 ///< Data rank (not the world's: ranks of one tensor group read the same).
  int world = 1;                ///< Number of data ranks.
  std::int64_t threads = 1;     ///< Tokenizer threads.
  std::int64_t prefetch = 2;    ///< Steps prepared ahead.
};

/// This rank's sequences of one step.
struct StepBatch {
  std::int64_t count = 0;             ///< batch / world
  std::vector<std::int32_t> tokens;   ///< [count, T]
  std::vector<std::int32_t> targets;  ///< [count, T]: the token after each.
  DataState after;                    ///< After the whole step, all ranks: what a checkpoint of this step keeps.
  std::vector<std::string>
      skipped;  ///< Place and fault of each unit skipped since the step before (the same on every rank).
};

/// The stream is every document as BOS and its tokens, one after the other, epoch after epoch. Sequence i has the T tokens
/// from i·T on as inputs and the T from i·T + 1 on as targets: every token but the first is predicted once. The model's
/// state is not reset inside a sequence. Step s is sequences [s·batch, (s + 1)·batch); rank r of n has the part of length
/// batch / n that begins at s·batch + r·batch/n. So the stream is a function of files, tokenizer and source options alone,
/// whatever the grid and the number of threads. Every data rank reads and tokenizes the whole stream and keeps its part.
///
/// Threads: one reads, `threads` tokenize, one packs. What waits between them is bounded in bytes (plus one document).
class Loader {
 public:
  /// Starts reading at `start`. Throws Error (usage) for options that do not fit together.
  explicit Loader(LoaderOptions options, const DataState& start = {});
  /// Ends the threads, blocked or not.
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  /// The next step; waits for it. Nothing after the last whole step when the source does not repeat: a last step that is not
  /// full is dropped. A failure of a thread is thrown here, as Error, after the steps before it, and again on further calls.
  std::optional<StepBatch> next();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace dm
