// Loading on one rank of a tensor group and sharing with the others.
#include "launch/training_data.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "runtime/random.h"

namespace dm {

DataSources DataSources::open(const TrainOptions::Data& options) {
  if (options.synthetic) {
    DataSources none;
    none.fingerprint.tokenizer = "synthetic";
    return none;
  }
  if (options.train.empty()) fail("no training data; name .jsonl.zst or .jsonl files with --data.train", ExitCode::usage);
  DataSources sources;
  sources.tokenizer = make_tokenizer(options.tokenizer);
  sources.train = expand_files(options.train);
  sources.valid = expand_files(options.valid);
  sources.fingerprint = DataFingerprint::of(sources.train, *sources.tokenizer, options.holdout);
  if (!sources.valid.empty()) {
    if (options.holdout > 0) fail("--data.valid and --data.holdout exclude each other; give one", ExitCode::usage);
    require_disjoint(sources.fingerprint, DataFingerprint::of(sources.valid, *sources.tokenizer));
  }
  return sources;
}

Sequences synthetic_step(const TrainOptions& options, const Grid& grid, std::int64_t first_sequence) {
  const RandomStream random(static_cast<std::uint64_t>(options.run.seed), "synthetic tokens");
  const std::int64_t count = options.train.batch / grid.data->size(), T = options.train.sequence;
  const auto token = [&](std::int64_t index) {
    const float uniform = random.uniform(static_cast<std::uint64_t>(index));
    return std::min(static_cast<std::int32_t>(uniform * static_cast<float>(options.model.vocabulary)),
                    static_cast<std::int32_t>(options.model.vocabulary - 1));
  };
  Sequences sequences{.count = count, .tokens = {}, .targets = {}};
  const std::int64_t begin = (first_sequence + grid.data->rank() * count) * T;
  for (std::int64_t i = begin; i < begin + count * T; ++i) sequences.tokens.push_back(token(i));
  sequences.targets.assign(sequences.tokens.begin() + 1, sequences.tokens.end());
  sequences.targets.push_back(token(begin + count * T));
  return sequences;
}

TrainingData::TrainingData(const TrainOptions& options, const DataSources& sources, Grid& grid, const DataState& start)
    : options_(options), sources_(sources), grid_(grid), state_(start) {
  const std::int64_t share = options.train.batch / grid.data->size(), tokens = share * options.train.sequence;
  step_.count = share;
  step_.tokens.resize(static_cast<std::size_t>(tokens));
  step_.targets.resize(static_cast<std::size_t>(tokens));
  if (grid.tensor->rank() == 0 && !options.data.synthetic)
    loader_ = std::make_unique<Loader>(loader_options(/*training=*/true), start);
}

LoaderOptions TrainingData::loader_options(bool training) const {
  const bool from_valid_files = !training && !sources_.valid.empty();
  const TrainOptions::Data& data = options_.data;
  return {.source = {.files = from_valid_files ? sources_.valid : sources_.train,
                     .on_error = parse_on_error(data.on_error),
                     .split = data.holdout == 0 ? Split::all
                              : training        ? Split::train
                                                : Split::valid,
                     .holdout = data.holdout,
                     .repeat = training},
          .tokenizer = sources_.tokenizer,
          .vocabulary = options_.model.vocabulary,
          .sequence = options_.train.sequence,
          .batch = training ? options_.train.batch : options_.train.valid_sequences,
          .rank = grid_.data->rank(),
          .world = grid_.data->size(),
          .threads = data.threads,
          .prefetch = training ? data.prefetch : 1};
}

void TrainingData::share(Stream& stream, Sequences& sequences) const {
  const std::int64_t tokens = sequences.count * options_.train.sequence;
  grid_.tensor_on_host().broadcast(stream, Tensor::of(sequences.tokens.data(), {tokens}), 0);
  grid_.tensor_on_host().broadcast(stream, Tensor::of(sequences.targets.data(), {tokens}), 0);
}

Sequences& TrainingData::next(Trace& trace, const Log& log) {
  if (options_.data.synthetic) {
    step_ = synthetic_step(options_, grid_, state_.sequences);
    state_.sequences += options_.train.batch;
    state_.tokens += options_.train.batch * options_.train.sequence;
    return step_;
  }
  Stream stream(Device::cpu(), &trace);
  if (loader_) {
    const Trace::Range wait(&trace, "data", Trace::Kind::data_wait);
    StepBatch batch = loader_->next().value();  // training data repeats for ever
    step_.tokens = std::move(batch.tokens);
    step_.targets = std::move(batch.targets);
    state_ = batch.after;
    if (grid_.world->rank() == 0) {
      for (const std::string& sentence : batch.skipped) log.warn("skipped: " + sentence);
    }
  }
  share(stream, step_);
  return step_;
}

void TrainingData::read_validation() {
  if (!has_validation()) return;
  const std::int64_t wanted = options_.train.valid_sequences, T = options_.train.sequence;
  const int ranks = grid_.data->size();
  if (wanted % ranks != 0) {
    fail(fmt::format("--train.valid_sequences {} does not divide over {} data ranks; make it a multiple", wanted, ranks),
         ExitCode::usage);
  }
  validation_.count = wanted / ranks;
  validation_.tokens.resize(static_cast<std::size_t>(validation_.count * T));
  validation_.targets.resize(static_cast<std::size_t>(validation_.count * T));
  if (grid_.tensor->rank() != 0) return;
  std::optional<StepBatch> batch = Loader(loader_options(/*training=*/false)).next();
  if (!batch) {
    fail(fmt::format("the validation data has fewer than {} sequences of {} tokens; lower --train.valid_sequences or give "
                     "more data",
                     wanted, T),
         ExitCode::usage);
  }
  validation_.tokens = std::move(batch->tokens);
  validation_.targets = std::move(batch->targets);
}

Sequences& TrainingData::validation() {
  Stream stream(Device::cpu());
  if (!std::exchange(validation_shared_, true)) share(stream, validation_);
  return validation_;
}

}  // namespace dm
