// What all ranks must know of one another's failures, and texts sent between ranks.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/communicator.h"
#include "runtime/error.h"

namespace dm {

/// A failure that every rank knows of: it is thrown on all of them, and the message names the rank that failed.
class AgreedError : public Error {
 public:
  using Error::Error;
};

/// Runs `work` on every rank and returns when it has succeeded on all of them. Collective; `work` must not be. When it
/// throws on any rank, every rank that has finished its own runs `undo` (which does not throw), and when all have, every
/// rank throws AgreedError: that of the lowest failing rank, with its exit code, as "<what>: rank R on HOST: <message>".
void run_on_all(
    Communicator& world, std::string_view what, const std::function<void()>& work,
    const std::function<void()>& undo = [] {});

/// The texts of all ranks in rank order, on every rank. Collective; lengths may differ.
std::vector<std::string> gather_texts(Communicator& world, std::string_view text);

/// root's text on every rank. Collective.
std::string broadcast_text(Communicator& world, std::string text, int root);

}  // namespace dm
