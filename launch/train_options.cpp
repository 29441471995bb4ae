// Every key of a training run with its help and its check; the defaults are those of the fields.
#include "launch/train_options.h"

namespace dm {
namespace {

constexpr Range<std::int64_t> kFromZero{.min = 0};
constexpr Range<std::int64_t> kFromOne{.min = 1};
constexpr Range<double> kNotNegative{.min = 0};
constexpr Range<double> kShare{.min = 0, .max = 1, .below_max = true};

void add_run(OptionTable& table, TrainOptions::Run& run) {
  table.section("run", "Where the run lives and what it computes on.");
  table.add("run.dir", run.dir, "Run directory: checkpoints, metrics.jsonl and the lock.");
  table.add("run.device", run.device, "Where to compute.", {"auto", "cpu", "cuda"});
  table.add("run.seed", run.seed, "Seed of the initial parameters and of the order of the data.", kFromZero);
  table.add("run.inject", run.inject, "Faults for tests: rank=R,step=S,point=P,fault=F; several are separated by ';'.");
}

void add_model(OptionTable& table, ModelConfig& model) {
  table.section("model", "The shape of the model.");
  table.add("model.layers", model.layers, "Layers [L].", kFromOne);
  table.add("model.d_model", model.d_model, "Width of the residual stream [C].", kFromOne);
  table.add("model.expand", model.expand, "Channels inside a mixer, as a multiple of the width.", kFromOne);
  table.add("model.d_state", model.d_state, "States of a channel [N].", kFromOne);
  table.add("model.d_conv", model.d_conv, "Taps of the causal convolution [W].", kFromOne);
  table.add("model.dt_rank", model.dt_rank, "Rank of the step-size projection [R]; 0: ceil(C / 16).", kFromZero);
  table.add("model.dense_depth", model.dense_depth, "Layers below whose hidden states a layer reads [M]; 0 is plain Mamba.",
            kFromZero);
  table.add("model.gate_rank", model.gate_rank, "Bottleneck of the dense gate [G]; 0: max(8, C / 32).", kFromZero);
  table.add("model.vocabulary", model.vocabulary, "Tokens [V]; 0: as many as the tokenizer has.", kFromZero);
}

void add_data(OptionTable& table, TrainOptions::Data& data) {
  table.section("data", "What is read.");
  table.add("data.train", data.train, "Training files or globs in The Pile's format: .jsonl.zst or .jsonl.");
  table.add("data.synthetic", data.synthetic,
            "Random tokens instead of the files and without validation, for measurement; model.vocabulary 0 is then 32000.");
  table.add("data.valid", data.valid, "Validation files or globs; empty: no validation, unless data.holdout is given.");
  table.add("data.holdout", data.holdout,
            "Share of the training documents, chosen by a hash of their text, that is kept for validation.", kShare);
  table.add("data.tokenizer", data.tokenizer, "'bytes', or a SentencePiece model file.");
  table.add("data.on_error", data.on_error, "A damaged document or frame: end the run, or skip and count it.",
            {"error", "skip"});
  table.add("data.threads", data.threads, "Tokenizer threads of a rank.", kFromOne);
  table.add("data.prefetch", data.prefetch, "Steps whose batches are prepared ahead.", kFromOne);
}

void add_train(OptionTable& table, TrainOptions::Train& train) {
  table.section("train", "Steps and their size.");
  table.add("train.batch", train.batch, "Sequences of a step, over all ranks.", kFromOne);
  table.add("train.micro_batch", train.micro_batch,
            "Sequences that a rank computes at once; gradients accumulate over the rest.", kFromOne);
  table.add("train.sequence", train.sequence, "Tokens of a sequence.", kFromOne);
  table.add("train.steps", train.steps, "Steps of the schedule.", kFromOne);
  table.add("train.stop_at", train.stop_at, "Save and end after this step; 0: at train.steps.", kFromZero);
  table.add("train.dtype", train.dtype,
            "Type of activations and matrices; masters and sums are float32. auto: bfloat16 on a GPU.",
            {"auto", "float32", "bfloat16"});
  table.add("train.recompute", train.recompute,
            "What backward computes again instead of keeping it: nothing; what costs little (selective); all but a block's "
            "input and the scan's states (block).",
            {"none", "selective", "block"});
  table.add("train.loss_chunk", train.loss_chunk, "Tokens whose logits exist at once.", kFromOne);
  table.add("train.valid_every", train.valid_every, "Steps between validations; 0: only at the end.", kFromZero);
  table.add("train.valid_sequences", train.valid_sequences, "Sequences of a validation, over all ranks.", kFromOne);
  table.add("train.nonfinite_budget", train.nonfinite_budget, "Updates skipped for NaN or Inf after which the run stops.",
            kFromZero);
}

void add_optimizer(OptionTable& table, TrainOptions::Optimizer& optimizer) {
  table.section("optimizer", "AdamW and its learning-rate schedule.");
  table.add("optimizer.lr", optimizer.lr, "Peak learning rate.", kNotNegative);
  table.add("optimizer.min_lr", optimizer.min_lr, "Learning rate at the end of the schedule.", kNotNegative);
  table.add("optimizer.beta1", optimizer.beta1, "Decay of the first moment.", kShare);
  table.add("optimizer.beta2", optimizer.beta2, "Decay of the second moment.", kShare);
  table.add("optimizer.epsilon", optimizer.epsilon, "Added to the root of the second moment.", kNotNegative);
  table.add("optimizer.weight_decay", optimizer.weight_decay, "Decoupled weight decay of the matrices.", kNotNegative);
  table.add("optimizer.clip", optimizer.clip, "Largest global gradient norm; 0: no clipping.", kNotNegative);
  table.add("optimizer.warmup_steps", optimizer.warmup_steps, "Steps of linear warm-up.", kFromZero);
  table.add("optimizer.schedule", optimizer.schedule, "From the peak to optimizer.min_lr.",
            {"cosine", "linear", "constant"});
}

void add_parallel(OptionTable& table, TrainOptions::Parallel& parallel) {
  table.section("parallel", "How ranks share the work; data-parallel size is ranks / parallel.tensor.");
  table.add("parallel.tensor", parallel.tensor, "Ranks that share one copy of the model.", kFromOne);
  table.add(
      "parallel.overlap", parallel.overlap,
      "Reduce gradients and gather values beside computation. auto: both where data ranks are on several nodes; within "
      "one, values by copy engines beside computation, and gradients alone, which takes less time than the kernels beside "
      "them would lose.",
      {"auto", "true", "false"});
  table.add(
      "parallel.nvlink_multicast", parallel.nvlink_multicast,
      "Let NCCL use NVLink multicast, which needs GPUs and a fabric that are this job's alone; NCCL_NVLS_ENABLE in the "
      "environment overrules it.");
  table.add("parallel.watchdog_seconds", parallel.watchdog_seconds,
            "A collective that takes longer ends the job and names who is missing; 0: never.", kNotNegative);
}

void add_checkpoint(OptionTable& table, TrainOptions::Checkpoint& checkpoint) {
  table.section("checkpoint", "When state is saved and what is kept.");
  table.add("checkpoint.every", checkpoint.every, "Steps between checkpoints; 0: only at the end.", kFromZero);
  table.add("checkpoint.keep", checkpoint.keep, "Newest checkpoints that are kept.", kFromOne);
  table.add("checkpoint.keep_every", checkpoint.keep_every, "Steps whose multiples are kept for ever; 0: none.", kFromZero);
  table.add("checkpoint.max_failures", checkpoint.max_failures, "Failed saves in a row after which the run stops.",
            kFromOne);
}

}  // namespace

OptionTable make_train_table(TrainOptions& options, const std::string& command, const std::string& summary) {
  OptionTable table("densemamba " + command + " [--config FILE] [--SECTION.KEY VALUE ...]", summary, DM_CONFIG_DIR);
  table.add("resume", options.resume,
            "auto: from the newest intact checkpoint if there is one; none: from the start, in an empty run directory; "
            "must: there has to be one; or a checkpoint directory.");
  table.add("override", options.override_keys, "Schedule keys that may differ from the checkpoint's.");
  table.add("inject", options.run.inject, "The same as --run.inject.");
  add_run(table, options.run);
  add_model(table, options.model);
  add_data(table, options.data);
  add_train(table, options.train);
  add_optimizer(table, options.optimizer);
  add_parallel(table, options.parallel);
  add_checkpoint(table, options.checkpoint);
  table.section("log", "What is printed.");
  table.add("log.every", options.log.every, "Steps between lines on the screen; metrics.jsonl has every step.", kFromOne);
  return table;
}

}  // namespace dm
