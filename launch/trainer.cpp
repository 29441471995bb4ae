// Starting a run, and the loop over its steps.
#include "launch/trainer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "kernels/elementwise.h"
#include "launch/build_info.h"
#include "launch/resume.h"
#include "launch/schedule.h"
#include "parallel/agreement.h"
#include "runtime/copy.h"

namespace dm {

Trainer::Trainer(const TrainerContext& context)
    : options_(context.options),
      table_(context.table),
      grid_(context.grid),
      device_(context.device),
      watchdog_(context.watchdog),
      stop_(context.stop),
      faults_(context.faults),
      log_(context.log),
      checkpoints_(std::filesystem::path(options_.run.dir) / "checkpoints") {
  started_ = now_seconds();
  watchdog_.set_phase("start");
  run_on_all(*grid_.world, "start", [&] { open_data(); });
  open_run_directory();
  watchdog_.start(*grid_.world, std::filesystem::path(options_.run.dir) / "watchdog", options_.parallel.watchdog_seconds,
                  log_, context.end_job);
  choose_start();
  make_model();
  print_banner();
  checkpoint_.reset();
}

void Trainer::open_data() {
  sources_ = DataSources::open(options_.data);
  const std::int64_t tokens = sources_.vocabulary();
  if (options_.model.vocabulary == 0) options_.model.vocabulary = tokens;
  if (sources_.tokenizer && options_.model.vocabulary < tokens) {
    fail(fmt::format("--model.vocabulary {} is smaller than the tokenizer's {}", options_.model.vocabulary, tokens),
         ExitCode::usage);
  }
  options_.model.resolve();
  micro_batch_of(options_.train, grid_.data->size());
  check_overrides(table_.values(), options_.override_keys);
}

void Trainer::open_run_directory() {
  run_on_all(*grid_.world, "run directory", [&] {
    if (grid_.world->rank() != 0) return;
    std::error_code error;
    std::filesystem::create_directories(checkpoints_, error);
    if (error) {
      fail(fmt::format("cannot make {}: {}; choose another --run.dir", checkpoints_.string(), error.message()),
           ExitCode::usage);
    }
    lock_ = std::make_unique<RunLock>(options_.run.dir, log_);
    remove_partial_checkpoints(checkpoints_, log_);
    metrics_ = std::make_unique<Metrics>(std::filesystem::path(options_.run.dir) / "metrics.jsonl", log_);
  });
  if (!metrics_) metrics_ = std::make_unique<Metrics>("", log_);
}

void Trainer::choose_start() {
  Communicator& world = *grid_.world;
  std::string chosen;
  run_on_all(world, "resume", [&] {
    if (world.rank() == 0) chosen = choose_checkpoint(options_.resume, options_.run.dir, log_).value_or("").string();
  });
  chosen = broadcast_text(world, chosen, 0);
  if (chosen.empty()) return;
  run_on_all(world, "resume", [&] {
    checkpoint_ = Checkpoint::open(chosen);
    record_ = from_metadata(checkpoint_->metadata(), chosen);
    const auto differences = compare_options(record_.options, table_.values(), options_.override_keys);
    const std::string data = difference(record_.data, sources_.fingerprint);
    if (!data.empty()) fail(fmt::format("{}: the run was trained on other data: {}", chosen, data), ExitCode::usage);
    for (const std::string& line : differences) log_.info("changed  " + line);
  });
}

void Trainer::make_model() {
  run_on_all(*grid_.world, "memory", [&] { training_.emplace(options_, grid_, device_, &trace_, memory_); });
  if (checkpoint_) {
    load(*checkpoint_);
  } else {
    training_->store().initialize(training_->stream(), static_cast<std::uint64_t>(options_.run.seed));
  }
  record_.options = table_.values();
  record_.data = sources_.fingerprint;
  record_.grid = grid_.describe();
  record_.build = build_description();
  data_.emplace(options_, sources_, grid_, record_.data_state);
  run_on_all(*grid_.world, "validation data", [&] { data_->read_validation(); });
}

void Trainer::load(const Checkpoint& checkpoint) {
  PartitionedAdamW& optimizer = training_->optimizer();
  run_on_all(*grid_.world, "resume", [&] { checkpoint.load(optimizer.pieces_to_load()); });
  auto updates = static_cast<std::int32_t>(record_.updates);
  copy(training_->stream(), Tensor::of(&updates, {1}), optimizer.updates());
  optimizer.finish_load(training_->stream());
  step_ = saved_step_ = checkpoint.step();
}

void Trainer::print_banner() const {
  if (!log_.speaks()) return;
  const TrainOptions::Train& train = options_.train;
  log_.info(build_description());
  log_.info(fmt::format("grid     {} on {} ranks, device {}", grid_.describe(), grid_.world->size(),
                        device_.kind == DeviceKind::cuda ? cuda::describe_device(device_.index) : name_of(device_)));
  log_.info("model    " + describe_model(options_.model));
  log_.info(fmt::format("step     {} sequences × {} tokens, micro-batches of {}, {} steps", train.batch, train.sequence,
                        micro_batch_of(train, grid_.data->size()), train.steps));
  std::int64_t bytes = 0;
  for (const DataFingerprint::File& file : sources_.fingerprint.files) bytes += file.size;
  if (!sources_.tokenizer) {
    log_.info("data     random tokens");
  } else {
    log_.info(fmt::format("data     {} training files, {:.1f} MB; {} validation files; tokenizer {}, {} tokens",
                          sources_.train.size(), static_cast<double>(bytes) * 1e-6, sources_.valid.size(),
                          options_.data.tokenizer, sources_.tokenizer->vocabulary()));
  }
  log_.info("memory   of one rank:");
  for (const std::string& line : memory_table(training_->plan())) log_.info(line);
  log_.info(checkpoint_ ? fmt::format("resume   from {} at step {}", checkpoint_->path().string(), step_)
                        : fmt::format("run      {} from its beginning, seed {}", options_.run.dir, options_.run.seed));
}

void Trainer::run() {
  const std::int64_t steps = options_.train.steps, stop_at = options_.train.stop_at;
  const std::int64_t last = stop_at > 0 ? std::min(stop_at, steps) : steps;
  first_step_ = step_;
  metrics_->append({{"event", "start"},
                    {"step", step_},
                    {"resumed", saved_step_ >= 0},
                    {"grid", record_.grid},
                    {"parameters", options_.model.parameters()},
                    {"build", record_.build},
                    {"startup_seconds", now_seconds() - started_}});
  if (step_ >= last)
    log_.info(fmt::format("nothing to do: the checkpoint is at step {} and the run ends at {}", step_, last));
  interval_ = interval_now(step_);
  finished_ = interval_.begin;
  const auto due = [&](std::int64_t every) { return every > 0 && step_ % every == 0; };
  bool stopping = false;
  while (step_ < last && !stopping) {
    start_step();
    if (training_->unfinished() > training_->ahead()) finish_step();
    stopping = stop_requested();
    const bool at_end = step_ == last || stopping, save_due = at_end || due(options_.checkpoint.every);
    const bool valid_due = (step_ == last || due(options_.train.valid_every)) && data_->has_validation();
    if (!save_due && !valid_due) continue;
    while (training_->unfinished() > 0) finish_step();
    if (valid_due) validate();
    if (save_due) {
      while (!save() && at_end) continue;  // at the end until it throws
    }
    finished_ = now_seconds();  // neither is a step's time
  }
  report_end();
}

void Trainer::at_point(std::string_view point) {
  watchdog_.set_phase(point);
  if (faults_.at(point) != Fault::nan) return;
  const ParameterStore& store = training_->store();
  fill(training_->stream(), store.gradients().flat(store.partition().owned(0).begin, 1), std::nanf(""));
}

void Trainer::start_step() {
  ++step_;
  faults_.set_step(step_);
  watchdog_.set_step(step_);
  faults_.at("data");
  watchdog_.set_phase("data");
  Sequences& sequences = data_->next(trace_, log_);
  record_.data_state = data_->state();
  const double lr = learning_rate(options_.optimizer, options_.train.steps, step_);
  training_->start(sequences, lr, [&](std::string_view point) { at_point(point); });
  unfinished_.push_back({step_, lr, record_.data_state.tokens});
}

void Trainer::finish_step() {
  watchdog_.entered("step", "GPU", 0);  // where a rank waits whose peers are gone
  const StepResult result = training_->finish();
  watchdog_.left();
  const Unfinished step = unfinished_.front();
  unfinished_.pop_front();
  if (result.updated) {
    ++record_.updates;
  } else {
    count_skipped_update(step.step, result);
  }
  report_step(step, result);
}

void Trainer::count_skipped_update(std::int64_t step, const StepResult& result) {
  ++record_.nonfinite_steps;
  const std::int64_t budget = options_.train.nonfinite_budget;
  const std::string what = fmt::format("step {}: loss {} and gradient norm {}", step, result.loss, result.gradient_norm);
  if (record_.nonfinite_steps > budget) {
    fail(fmt::format("{}; more than --train.nonfinite_budget {} updates were skipped; lower --optimizer.lr", what, budget));
  }
  if (!log_.speaks()) return;
  log_.warn(fmt::format("{}: update skipped on all ranks ({} of {} allowed)", what, record_.nonfinite_steps, budget));
}

Trainer::Interval Trainer::interval_now(std::int64_t step) const {
  return {now_seconds(),
          trace_.seconds(Trace::Kind::communication),
          trace_.seconds(Trace::Kind::data_wait),
          trace_.seconds(Trace::Kind::compute),
          device_seconds_,
          step};
}

void Trainer::report_step(const Unfinished& step, const StepResult& result) {
  const double now = now_seconds(), seconds = now - std::exchange(finished_, now);
  device_seconds_ += result.device_seconds;
  const auto tokens = options_.train.batch * options_.train.sequence;
  metrics_->append({{"event", "step"},
                    {"step", step.step},
                    {"loss", result.loss},
                    {"grad_norm", result.gradient_norm},
                    {"lr", step.lr},
                    {"tokens", tokens},
                    {"seconds", seconds},
                    {"tokens_per_second", static_cast<double>(tokens) / seconds},
                    {"total_tokens", step.total_tokens},
                    {"updated", result.updated}});
  if (step.step % options_.log.every == 0 || step.step == first_step_ + 1) print_step(step, result);
}

void Trainer::print_step(const Unfinished& step, const StepResult& result) {
  const Interval now = interval_now(step.step);
  const double wall = now.begin - interval_.begin, steps = static_cast<double>(now.steps - interval_.steps);
  const double tokens = static_cast<double>(options_.train.batch * options_.train.sequence) * steps;
  const auto share = [&](double after, double before) { return 100 * (after - before) / wall; };
  // A GPU's operations are only given to it in the ranges of the trace; its own clock says how long they took.
  const std::string shares = device_.kind == DeviceKind::cuda
                                 ? fmt::format("GPU {:3.0f}%", share(now.device, interval_.device))
                                 : fmt::format("math {:3.0f}%  comm {:3.0f}%", share(now.compute, interval_.compute),
                                               share(now.communication, interval_.communication));
  log_.info(fmt::format("step {:>7}  loss {:7.4f}  norm {:7.3f}  lr {:.2e}  {:7.1f} ms  {:>9.0f} tok/s  {}  data {:3.0f}%",
                        step.step, result.loss, result.gradient_norm, step.lr, 1e3 * wall / steps, tokens / wall, shares,
                        share(now.data_wait, interval_.data_wait)));
  interval_ = now;
}

double Trainer::unigram_loss(const Sequences& sequences) {
  if (unigram_loss_) return *unigram_loss_;
  std::vector<std::int64_t> counts(static_cast<std::size_t>(options_.model.vocabulary));
  for (const std::int32_t target : sequences.targets) ++counts[static_cast<std::size_t>(target)];
  Stream host(Device::cpu());
  grid_.data_on_host().all_reduce(host, Tensor::of(counts.data(), {options_.model.vocabulary}));
  const auto total = static_cast<double>(options_.train.valid_sequences * options_.train.sequence);
  double entropy = 0;
  for (const std::int64_t count : counts) {
    if (count > 0) entropy -= static_cast<double>(count) / total * std::log(static_cast<double>(count) / total);
  }
  unigram_loss_ = entropy;
  return entropy;
}

void Trainer::validate() {
  watchdog_.set_phase("validation");
  const double begin = now_seconds();
  Sequences& sequences = data_->validation();
  const double loss = training_->evaluate(sequences);
  const std::int64_t predicted = options_.train.valid_sequences * options_.train.sequence;
  const double unigram = unigram_loss(sequences);
  log_.info(fmt::format("valid {:>6}  loss {:7.4f}  on {} held-out tokens; their best unigram model: {:.4f}", step_, loss,
                        predicted, unigram));
  metrics_->append({{"event", "valid"},
                    {"step", step_},
                    {"loss", loss},
                    {"unigram_loss", unigram},
                    {"tokens", predicted},
                    {"seconds", now_seconds() - begin}});
}

bool Trainer::save() {
  watchdog_.set_phase("save");
  const double begin = now_seconds();
  const Trace::Range stall(&trace_, "checkpoint", Trace::Kind::checkpoint);
  std::filesystem::path path;
  try {
    path = save_checkpoint(*grid_.world, checkpoints_, step_, training_->optimizer().pieces_to_save(training_->stream()),
                           to_metadata(record_), faults_);
  } catch (const Error& error) {  // the same on every rank
    metrics_->append({{"event", "checkpoint_failed"}, {"step", step_}, {"error", error.what()}});
    const std::int64_t allowed = options_.checkpoint.max_failures;
    if (++failed_saves_ >= allowed) {
      fail(fmt::format("{}; failed {} times in a row (--checkpoint.max_failures); {}", error.what(), failed_saves_,
                       saved_step_ < 0 ? "nothing is saved" : fmt::format("the newest is of step {}", saved_step_)),
           error.code());
    }
    if (log_.speaks()) log_.warn(fmt::format("{} (failure {} of {} in a row)", error.what(), failed_saves_, allowed));
    return false;
  }
  saved_step_ = step_;
  failed_saves_ = 0;
  log_.info(fmt::format("saved {:>6}  {} in {:.2f} s", step_, path.string(), now_seconds() - begin));
  metrics_->append(
      {{"event", "checkpoint"}, {"step", step_}, {"path", path.filename().string()}, {"seconds", now_seconds() - begin}});
  if (grid_.world->rank() == 0) remove_old_checkpoints();
  return true;
}

void Trainer::remove_old_checkpoints() {
  try {
    retain_checkpoints(checkpoints_, static_cast<int>(options_.checkpoint.keep), options_.checkpoint.keep_every, log_);
  } catch (const std::exception& error) {  // this rank's alone, and nothing that training needs
    log_.warn(fmt::format("old checkpoints are not removed: {}", error.what()));
  }
}

bool Trainer::stop_requested() {
  watchdog_.set_phase("agree");
  std::int32_t signal = stop_.received();
  Stream host(Device::cpu(), &trace_);
  grid_.world->all_reduce(host, Tensor::of(&signal, {1}), ReduceOp::max);
  if (signal != 0) log_.info(fmt::format("signal {} received: saving at step {} and ending", signal, step_));
  return signal != 0;
}

void Trainer::report_end() {
  const std::int64_t steps = step_ - first_step_;
  const double wall = now_seconds() - started_;
  const auto seconds = [&](Trace::Kind kind) { return trace_.seconds(kind); };
  const double tokens = static_cast<double>(steps * options_.train.batch * options_.train.sequence);
  const bool on_gpu = device_.kind == DeviceKind::cuda;
  nlohmann::json end = {{"event", "end"},
                        {"step", step_},
                        {"steps", steps},
                        {"seconds", wall},
                        {"data_wait_seconds", seconds(Trace::Kind::data_wait)},
                        {"checkpoint_seconds", seconds(Trace::Kind::checkpoint)}};
  if (on_gpu) {
    end["device_seconds"] = device_seconds_;
  } else {
    end["compute_seconds"] = seconds(Trace::Kind::compute);
    end["communication_seconds"] = seconds(Trace::Kind::communication);
  }
  metrics_->append(end);
  if (!log_.speaks() || steps == 0) return;
  const auto share = [&](double part) { return fmt::format("{:.0f}%", 100 * part / wall); };
  log_.info(fmt::format(
      "end      step {}, {:.0f} tokens in {:.1f} s; this rank: {}, data {}, checkpoints {}; {:.1f} GFLOP/s a rank", step_,
      tokens, wall,
      on_gpu ? "GPU " + share(device_seconds_)
             : fmt::format("math {}, communication {}", share(seconds(Trace::Kind::compute)),
                           share(seconds(Trace::Kind::communication))),
      share(seconds(Trace::Kind::data_wait)), share(seconds(Trace::Kind::checkpoint)),
      1e-9 * tokens * options_.model.training_flops_per_token() / wall / grid_.world->size()));
  if (on_gpu) return;
  std::vector<Trace::Entry> entries = trace_.entries();
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
  for (std::size_t i = 0; i < std::min<std::size_t>(entries.size(), 8); ++i) {
    log_.info(fmt::format("  {:<28} {:>8} calls {:>8.2f} s {:>4.0f}%", entries[i].name, entries[i].calls, entries[i].seconds,
                          100 * entries[i].seconds / wall));
  }
}

}  // namespace dm
