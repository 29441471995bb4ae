// `densemamba generate`: continues a text with a trained model, token by token from a state of constant size.
#include <algorithm>
#include <cmath>
#include <iostream>
#include <numeric>
#include <vector>

#include <fmt/format.h>

#include "dataloader/tokenizer.h"
#include "kernels/matmul.h"
#include "launch/checkpoint_path.h"
#include "launch/commands.h"
#include "launch/run_record.h"
#include "launch/train_options.h"
#include "model/decoder.h"
#include "parallel/checkpoint.h"
#include "runtime/random.h"

namespace dm {
namespace {

struct GenerateOptions {
  std::string checkpoint;
  std::string prompt;
  std::string tokenizer;
  std::int64_t tokens = 100;
  double temperature = 0.8;
  std::int64_t top_k = 40;
  std::int64_t seed = 1;
};

/// Draws from softmax(logits / temperature) over the `top_k` largest logits; the largest itself at temperature 0.
std::int32_t sample(const float* logits, std::int64_t vocabulary, const GenerateOptions& options, float uniform) {
  std::vector<std::int32_t> order(static_cast<std::size_t>(vocabulary));
  std::iota(order.begin(), order.end(), 0);
  const std::int64_t kept = options.temperature == 0 ? 1
                            : options.top_k == 0     ? vocabulary
                                                     : std::min(options.top_k, vocabulary);
  std::partial_sort(order.begin(), order.begin() + kept, order.end(),
                    [&](std::int32_t a, std::int32_t b) { return logits[a] > logits[b]; });
  if (kept == 1) return order[0];
  std::vector<double> cumulative;
  double sum = 0;
  for (std::int64_t i = 0; i < kept; ++i) {
    const auto token = order[static_cast<std::size_t>(i)];
    cumulative.push_back(sum += std::exp(static_cast<double>(logits[token] - logits[order[0]]) / options.temperature));
  }
  const auto at = std::upper_bound(cumulative.begin(), cumulative.end(), static_cast<double>(uniform) * sum);
  return order[static_cast<std::size_t>(std::min<std::int64_t>(at - cumulative.begin(), kept - 1))];
}

/// The model's options as the checkpoint's run had them.
TrainOptions options_of(const RunRecord& record, const std::string& source) {
  TrainOptions options;
  make_train_table(options).set_values(record.options, source);
  options.model.resolve();
  return options;
}

void load_values(const Checkpoint& checkpoint, const ParameterStore& store) {
  std::vector<StatePiece> pieces;
  for (const ParameterStore::Entry& entry : store.entries()) {
    const Shape matrix = as_matrix(entry.spec.shape);
    pieces.push_back({entry.spec.name,
                      StateKind::value,
                      entry.spec.shape,
                      {0, 0, matrix[0], matrix[1]},
                      store.parameter(entry.spec.name).value.flat()});
  }
  checkpoint.load(pieces);
}

void generate(const GenerateOptions& options) {
  const std::filesystem::path path = checkpoints_at(options.checkpoint).front();
  const Checkpoint checkpoint = Checkpoint::open(path);
  const RunRecord record = from_metadata(checkpoint.metadata(), path.string());
  const TrainOptions trained = options_of(record, path.string());
  const auto tokenizer = make_tokenizer(options.tokenizer.empty() ? trained.data.tokenizer : options.tokenizer);
  if (tokenizer->hash() != record.data.tokenizer) {
    fail(fmt::format("{} is not the tokenizer that {} was trained with; give that one with --tokenizer", tokenizer->name(),
                     path.string()),
         ExitCode::usage);
  }

  MemoryReport memory;
  Stream stream(Device::cpu());
  const auto self = make_self_communicator();
  const ParameterStore store(parameter_specs(trained.model), {}, Device::cpu(), memory);
  load_values(checkpoint, store);
  const LanguageModel model(trained.model, store, *self);

  std::vector<std::int32_t> ids{tokenizer->bos()};
  tokenizer->encode(options.prompt, ids);
  const auto prompt = static_cast<std::int64_t>(ids.size()), columns = model.vocabulary().rows();
  Decoder decoder(model, 1, 1, Device::cpu(), memory);
  std::vector<float> logits(static_cast<std::size_t>(columns));
  const RandomStream random(static_cast<std::uint64_t>(options.seed), "sampling");
  for (std::int64_t at = 0; at < prompt + options.tokens - 1; ++at) {
    decoder.feed(stream, Tensor::of(&ids[static_cast<std::size_t>(at)], {1, 1}), Tensor::of(logits.data(), {1, 1, columns}));
    if (at + 1 < prompt) continue;
    ids.push_back(sample(logits.data(), trained.model.vocabulary, options, random.uniform(static_cast<std::uint64_t>(at))));
    if (ids.back() == tokenizer->bos()) break;  // the model began another document
  }
  std::cout << tokenizer->decode(ids) << '\n';
}

}  // namespace

int generate_command(int argc, char** argv) {
  GenerateOptions options;
  OptionTable table("densemamba generate CHECKPOINT [options]",
                    "Continues a text with the model of a checkpoint (or of a run's newest one).");
  table.add("checkpoint", options.checkpoint, "Checkpoint directory or run directory.");
  table.positional("checkpoint");
  table.add("prompt", options.prompt, "The text to continue.");
  table.add("tokenizer", options.tokenizer, "Tokenizer, where it no longer lies at the path it was trained with.");
  table.add("tokens", options.tokens, "Tokens to add at most.", {.min = 1});
  table.add("temperature", options.temperature, "Softmax temperature; 0 takes the likeliest token.", {.min = 0});
  table.add("top_k", options.top_k, "Draw among this many likeliest tokens; 0: all.", {.min = 0});
  table.add("seed", options.seed, "Seed of the draw.", {.min = 0});
  if (table.parse(argc, argv, std::cout) != ParseOutcome::run) return 0;
  if (options.checkpoint.empty())
    fail("name a checkpoint or run directory; see `densemamba generate --help`", ExitCode::usage);
  use_one_blas_thread();
  generate(options);
  return 0;
}

}  // namespace dm
