// `densemamba plan`: the memory table, parameters and operations of a run on any grid, without data, MPI or the memory
// itself.
#include <iostream>

#include <fmt/format.h>

#include "dataloader/tokenizer.h"
#include "launch/commands.h"
#include "launch/device_choice.h"
#include "launch/memory_plan.h"
#include "launch/train_options.h"
#include "launch/training_data.h"

namespace dm {

int plan_command(int argc, char** argv) {
  TrainOptions options;
  std::int64_t ranks = 1;
  OptionTable table =
      make_train_table(options, "plan", "Prints what a rank of a run will hold and compute, and runs nothing.");
  table.add("ranks", ranks, "Ranks of the job: what mpirun -n would get.", {.min = 1});
  if (table.parse(argc, argv, std::cout) != ParseOutcome::run) return 0;

  const std::int64_t tensor = options.parallel.tensor;
  if (ranks % tensor != 0) {
    fail(fmt::format("--ranks {} do not divide into tensor groups of {}", ranks, tensor), ExitCode::usage);
  }
  if (options.model.vocabulary == 0) {
    options.model.vocabulary =
        options.data.synthetic ? DataSources::kSyntheticVocabulary : make_tokenizer(options.data.tokenizer)->vocabulary();
  }
  options.model.resolve();
  const DeviceKind kind = device_kind(options.run.device);
  const auto data_size = static_cast<int>(ranks / tensor);
  const MemoryPlan plan = plan_memory(options, data_size, static_cast<int>(tensor), kind);
  const std::int64_t tokens = options.train.batch * options.train.sequence;

  std::cout << "grid     " << Grid::plan(data_size, static_cast<int>(tensor)).describe() << '\n'
            << "model    " << describe_model(options.model) << '\n'
            << fmt::format(
                   "step     {} tokens, micro-batches of {} sequences, {:.3g} FLOP; {} steps: {:.3g} tokens, {:.3g} FLOP\n",
                   tokens, micro_batch_of(options.train, data_size),
                   static_cast<double>(tokens) * options.model.training_flops_per_token(), options.train.steps,
                   static_cast<double>(tokens * options.train.steps),
                   static_cast<double>(tokens * options.train.steps) * options.model.training_flops_per_token())
            << "memory   of one rank:\n";
  for (const std::string& line : memory_table(plan)) std::cout << line << '\n';
  return 0;
}

}  // namespace dm
