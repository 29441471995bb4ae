// The options of a training run: one field for each key of the options table, with its default.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/vocabulary.h"
#include "runtime/options.h"

namespace dm {

/// Sections and fields are those of the `.cfg` files: `train.micro_batch` is `TrainOptions::train.micro_batch`.
struct TrainOptions {
  struct Run {
    std::string dir = "runs/default";  ///< Checkpoints, metrics.jsonl, the lock.
    std::string device = "auto";       ///< cpu | cuda | auto
    std::int64_t seed = 1;             ///< Of the initial parameters.
    std::string inject;                ///< Faults for tests.
  } run;

  ModelConfig model;

  struct Data {
    std::vector<std::string> train;   ///< Files or globs, .jsonl.zst or .jsonl, in this order.
    std::vector<std::string> valid;   ///< Files or globs; empty: no validation unless holdout.
    bool synthetic = false;           ///< Random tokens instead of files.
    double holdout = 0;               ///< Share of the training documents (by hash of the text) kept for validation instead.
    std::string tokenizer = "bytes";  ///< bytes | a SentencePiece model file
    std::string on_error = "error";   ///< error | skip
    std::int64_t threads = 1;         ///< Tokenizer threads a rank.
    std::int64_t prefetch = 2;        ///< Optimizer steps of batches prepared ahead.
  } data;

  struct Train {
    std::int64_t batch = 8;                ///< Sequences a step, over all ranks.
    std::int64_t micro_batch = 4;          ///< Sequences a rank computes at once; gradients accumulate over the rest.
    std::int64_t sequence = 256;           ///< Tokens a sequence.
    std::int64_t steps = 1000;             ///< Length of the schedule.
    std::int64_t stop_at = 0;              ///< Save and end after this step; 0: at `steps`.
    std::string dtype = "auto";            ///< Of activations and matrices: auto | float32 | bfloat16
    std::string recompute = "none";        ///< none | selective | block
    std::int64_t loss_chunk = kLossChunk;  ///< Tokens whose logits exist at once.
    std::int64_t valid_every = 0;          ///< Steps between validations; 0: only at the end.
    std::int64_t valid_sequences = 64;     ///< Sequences of a validation, over all ranks.
    std::int64_t nonfinite_budget = 10;    ///< Skipped updates (NaN or Inf) after which the run stops.
  } train;

  struct Optimizer {
    double lr = 1e-3;      ///< Peak learning rate.
    double min_lr = 1e-5;  ///< Where the schedule ends.
    double beta1 = 0.9;
    double beta2 = 0.95;
    double epsilon = 1e-8;
    double weight_decay = 0.1;
    double clip = 1.0;  ///< Global gradient norm; 0: no clipping.
    std::int64_t warmup_steps = 100;
    std::string schedule = "cosine";  ///< cosine | linear | constant
  } optimizer;

  struct Parallel {
    std::int64_t tensor = 1;        ///< Ranks that share one copy of the model.
    std::string overlap = "auto";   ///< auto | true | false
    bool nvlink_multicast = false;  ///< NCCL's NVLS.
    double watchdog_seconds = 600;  ///< A collective that takes longer ends the job; 0: never.
  } parallel;

  struct Checkpoint {
    std::int64_t every = 0;         ///< Steps between checkpoints; 0: only at the end.
    std::int64_t keep = 3;          ///< Newest checkpoints kept.
    std::int64_t keep_every = 0;    ///< Steps whose multiples are kept for ever; 0: none.
    std::int64_t max_failures = 3;  ///< Failed saves in a row after which the run stops.
  } checkpoint;

  struct Log {
    std::int64_t every = 10;  ///< Steps between lines on the screen; metrics.jsonl has every step.
  } log;

  std::string resume = "auto";             ///< --resume: auto | none | must | a checkpoint directory
  std::vector<std::string> override_keys;  ///< --override: schedule keys that may differ from the checkpoint's.
};

/// The table over `options`: every key with help, default and check. `options` must outlive it. `command` and `summary` open
/// --help.
OptionTable make_train_table(TrainOptions& options, const std::string& command = "train",
                             const std::string& summary = "Pretrains a model; run it under mpirun for more than one rank.");

}  // namespace dm
