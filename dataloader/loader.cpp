// The threads of the loader and the bounded queues between them.
#include "dataloader/loader.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include <fmt/format.h>

#include "dataloader/packer.h"
#include "runtime/error.h"

namespace dm {
namespace {

/// Text that may wait between the reader and the packer, beside the last document: about twice that of the steps prepared
/// ahead, so that a start does not tokenize minutes of training before the first step, within bounds that keep several
/// tokenizer threads busy and memory small.
std::size_t bytes_ahead_of(const LoaderOptions& options) {
  constexpr std::int64_t kLeast = 256 << 10, kMost = 8 << 20, kBytesPerToken = 4;
  const std::int64_t tokens = std::min(options.prefetch * options.batch, kMost) * std::min(options.sequence, kMost);
  return static_cast<std::size_t>(std::clamp(2 * tokens * kBytesPerToken, kLeast, kMost));
}

/// One document on its way from the reader to the packer.
struct Job {
  Document document;
  std::size_t bytes = 0;
  std::vector<std::int32_t> tokens;
  bool done = false;
  std::exception_ptr error;
};

void check(const LoaderOptions& options) {
  require(options.tokenizer != nullptr, "the loader needs a tokenizer");
  const auto positive = [](std::int64_t value, const char* name) {
    if (value < 1) fail(fmt::format("{} is {}; it must be at least 1", name, value), ExitCode::usage);
  };
  positive(options.sequence, "sequence");
  positive(options.batch, "batch");
  positive(options.threads, "data threads");
  positive(options.prefetch, "data prefetch");
  require(options.world >= 1 && options.rank >= 0 && options.rank < options.world, "data rank outside its group");
  if (options.batch % options.world != 0)
    fail(fmt::format("batch is {}; it must be a multiple of the {} data ranks", options.batch, options.world),
         ExitCode::usage);
}

}  // namespace

/// One mutex guards everything; the work itself is done without it. Jobs stay in reading order in `jobs`, are tokenized in
/// any order, and are packed from the front as soon as the front is done.
struct Loader::Impl {
  Impl(LoaderOptions given, const DataState& start);
  ~Impl();

  void start();
  void read();
  void tokenize();
  void pack();
  void encode(Job& job) const;
  bool push(std::unique_ptr<Job> job);
  bool emit(StepBatch step);
  void finish(std::exception_ptr why);

  const LoaderOptions options;
  const std::int64_t vocabulary;
  const std::size_t bytes_ahead;
  DocumentSource source;
  Packer packer;

  std::mutex mutex;
  std::condition_variable room;        ///< For the reader: `bytes` became smaller.
  std::condition_variable work;        ///< For the tokenizers: `todo` has a job.
  std::condition_variable done;        ///< For the packer: the first job is done or the end is known.
  std::condition_variable step_room;   ///< For the packer: `steps` became shorter.
  std::condition_variable step_ready;  ///< For next().
  bool stopped = false;
  std::deque<std::unique_ptr<Job>> jobs;
  std::deque<Job*> todo;
  std::size_t bytes = 0;  ///< Text of `jobs`.
  bool read_all = false;  ///< No job will follow; `read_error` says why if it is not the end of the data.
  std::exception_ptr read_error;
  std::deque<StepBatch> steps;
  bool finished = false;  ///< No step will follow; `error` says why if it is not the end of the data.
  std::exception_ptr error;

  std::vector<std::jthread> threads;
};

Loader::Impl::Impl(LoaderOptions given, const DataState& start)
    : options(std::move(given)),
      vocabulary(options.vocabulary > 0 ? options.vocabulary : options.tokenizer->vocabulary()),
      bytes_ahead(bytes_ahead_of(options)),
      source(options.source, start),
      packer(options.sequence, options.batch, options.rank, options.world, start) {}

void Loader::Impl::start() {
  threads.emplace_back([this] { read(); });
  for (std::int64_t i = 0; i < options.threads; ++i) threads.emplace_back([this] { tokenize(); });
  threads.emplace_back([this] { pack(); });
}

Loader::Impl::~Impl() {
  {
    const std::lock_guard lock(mutex);
    stopped = true;
  }
  source.stop();
  for (auto* condition : {&room, &work, &done, &step_room}) condition->notify_all();
  threads.clear();
}

void Loader::Impl::read() {
  std::exception_ptr failure;
  try {
    while (auto document = source.next()) {
      auto job = std::make_unique<Job>();
      job->document = std::move(*document);
      job->bytes = job->document.text.size();
      if (!push(std::move(job))) return;
    }
  } catch (...) {
    failure = std::current_exception();
  }
  const std::lock_guard lock(mutex);
  read_all = true;
  read_error = failure;
  done.notify_all();
}

/// Waits for room and queues the job; false when the loader is being destroyed.
bool Loader::Impl::push(std::unique_ptr<Job> job) {
  std::unique_lock lock(mutex);
  room.wait(lock, [&] { return stopped || jobs.empty() || bytes + job->bytes <= bytes_ahead; });
  if (stopped) return false;
  bytes += job->bytes;
  todo.push_back(job.get());
  jobs.push_back(std::move(job));
  work.notify_one();
  return true;
}

void Loader::Impl::tokenize() {
  std::unique_lock lock(mutex);
  while (true) {
    work.wait(lock, [&] { return stopped || !todo.empty(); });
    if (stopped) return;
    Job& job = *todo.front();
    todo.pop_front();
    lock.unlock();
    try {
      encode(job);
    } catch (...) {
      job.error = std::current_exception();
    }
    lock.lock();
    job.done = true;
    if (&job == jobs.front().get()) done.notify_all();
  }
}

void Loader::Impl::encode(Job& job) const {
  const Tokenizer& tokenizer = *options.tokenizer;
  job.tokens.push_back(tokenizer.bos());
  tokenizer.encode(job.document.text, job.tokens);
  job.document.text = {};
  for (const std::int32_t token : job.tokens) {
    if (token < 0 || token >= vocabulary)
      fail(fmt::format("token {} of tokenizer {} is outside the vocabulary of {}: the model was made for another tokenizer",
                       token, tokenizer.name(), vocabulary));
  }
}

void Loader::Impl::pack() {
  std::unique_lock lock(mutex);
  while (true) {
    done.wait(lock, [&] { return stopped || (jobs.empty() ? read_all : jobs.front()->done); });
    if (stopped) return;
    if (jobs.empty()) return finish(read_error);
    const std::unique_ptr<Job> job = std::move(jobs.front());
    jobs.pop_front();
    bytes -= job->bytes;
    room.notify_one();
    if (job->error) return finish(job->error);
    lock.unlock();
    std::exception_ptr failure;
    try {
      packer.add(job->document, job->tokens, [this](StepBatch step) { return emit(std::move(step)); });
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    if (failure) return finish(failure);
  }
}

/// Waits for room and queues the step; false when the loader is being destroyed.
bool Loader::Impl::emit(StepBatch step) {
  std::unique_lock lock(mutex);
  step_room.wait(lock, [&] { return stopped || steps.size() < static_cast<std::size_t>(options.prefetch); });
  if (stopped) return false;
  steps.push_back(std::move(step));
  step_ready.notify_one();
  return true;
}

/// Called with the mutex held.
void Loader::Impl::finish(std::exception_ptr why) {
  finished = true;
  error = std::move(why);
  step_ready.notify_all();
}

Loader::Loader(LoaderOptions options, const DataState& start) {
  check(options);
  impl_ = std::make_unique<Impl>(std::move(options), start);
  impl_->start();
}

Loader::~Loader() = default;

std::optional<StepBatch> Loader::next() {
  Impl& impl = *impl_;
  std::unique_lock lock(impl.mutex);
  impl.step_ready.wait(lock, [&] { return !impl.steps.empty() || impl.finished; });
  if (impl.steps.empty()) {
    if (impl.error) std::rethrow_exception(impl.error);
    return std::nullopt;
  }
  StepBatch step = std::move(impl.steps.front());
  impl.steps.pop_front();
  impl.step_room.notify_one();
  return step;
}

}  // namespace dm
