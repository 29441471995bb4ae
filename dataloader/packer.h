// Cuts the token stream into sequences and steps, and keeps one rank's part of each.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "dataloader/data_state.h"
#include "dataloader/loader.h"

namespace dm {

/// Fed with documents in order; gives out steps in order. A step is complete when the first token of the next one is known:
/// it is the last target, and its place in its document is the state after the step.
class Packer {
 public:
  /// The first document fed is the one that `start` lies in.
  Packer(std::int64_t sequence, std::int64_t batch, int rank, int world, const DataState& start);

  /// Takes the document at `document.position` with all its `tokens`, BOS first, and gives the steps that it completes to
  /// `emit`, one by one, as long as that returns true. Throws Error when the start state lies behind the end of the
  /// document.
  void add(const Document& document, std::span<const std::int32_t> tokens, const std::function<bool(StepBatch)>& emit);

 private:
  void take(std::span<const std::int32_t> tokens);
  StepBatch finish_step(const DataState& document, std::int64_t token);

  std::int64_t step_tokens_;  ///< Tokens of a whole step.
  std::int64_t begin_;        ///< This rank's tokens of a step are [begin_, end_], both ends included.
  std::int64_t end_;
  std::int64_t count_;
  std::int64_t batch_;
  DataState state_;                   ///< Before the step in hand.
  std::int64_t skip_;                 ///< Tokens of the first document that were consumed before.
  std::int64_t filled_ = 0;           ///< Tokens of the step in hand that came by.
  std::vector<std::int32_t> window_;  ///< Those of them that are this rank's.
  std::vector<std::string> skipped_;
};

}  // namespace dm
