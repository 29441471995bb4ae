// Being asked to stop: SIGTERM, SIGINT and SIGUSR1 end a run after the step at hand, with a checkpoint.
#pragma once

namespace dm {

/// Takes the three signals over while it lives; construct once, in the training process. A second signal ends the process at
/// once with exit code 128 + its number.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  /// The signal that has arrived, or 0.
  int received() const;
};

}  // namespace dm
