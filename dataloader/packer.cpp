// Walks documents through a window of one step.
#include "dataloader/packer.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "runtime/error.h"

namespace dm {

Packer::Packer(std::int64_t sequence, std::int64_t batch, int rank, int world, const DataState& start)
    : step_tokens_(sequence * batch),
      begin_(batch / world * rank * sequence),
      end_(begin_ + batch / world * sequence),
      count_(batch / world),
      batch_(batch),
      state_(start),
      skip_(start.token) {}

void Packer::add(const Document& document, std::span<const std::int32_t> tokens,
                 const std::function<bool(StepBatch)>& emit) {
  skipped_.insert(skipped_.end(), document.skipped.begin(), document.skipped.end());
  auto at = static_cast<std::size_t>(std::exchange(skip_, 0));
  if (at >= tokens.size())
    fail(
        fmt::format("the data state lies behind token {} of a document of {} tokens (line {} of file {}, counted from 0): "
                    "the data or the tokenizer differ from those it was made with",
                    at, tokens.size(), document.position.line, document.position.file));
  while (at < tokens.size()) {
    if (filled_ == step_tokens_) {
      take(tokens.subspan(at, 1));
      if (!emit(finish_step(document.position, static_cast<std::int64_t>(at)))) return;
    }
    const auto count = std::min(tokens.size() - at, static_cast<std::size_t>(step_tokens_ - filled_));
    take(tokens.subspan(at, count));
    at += count;
  }
}

/// Keeps of the next tokens of the step those that are this rank's.
void Packer::take(std::span<const std::int32_t> tokens) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  const std::int64_t from = std::clamp<std::int64_t>(begin_ - filled_, 0, count);
  const std::int64_t to = std::clamp<std::int64_t>(end_ + 1 - filled_, 0, count);
  window_.insert(window_.end(), tokens.begin() + from, tokens.begin() + to);
  filled_ += count;
}

/// Gives the step out; its last target is the first token of the next one: token `token` of `document`.
StepBatch Packer::finish_step(const DataState& document, std::int64_t token) {
  const DataState before = state_;
  state_ = document;
  state_.token = token;
  state_.sequences = before.sequences + batch_;
  state_.tokens = before.tokens + step_tokens_;
  StepBatch step;
  step.count = count_;
  step.targets.assign(window_.begin() + 1, window_.end());
  window_.pop_back();
  step.tokens = std::exchange(window_, {});
  step.after = state_;
  step.skipped = std::exchange(skipped_, {});
  filled_ = 0;
  window_.reserve(step.tokens.size() + 1);
  return step;
}

}  // namespace dm
