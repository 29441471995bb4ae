// A handler can only reach a global: one flag, written here alone.
#include "launch/stop_signal.h"

#include <unistd.h>

#include <csignal>

namespace dm {
namespace {

volatile std::sig_atomic_t received_signal = 0;
constexpr int kSignals[] = {SIGTERM, SIGINT, SIGUSR1};

extern "C" void note_stop_signal(int number) {
  if (received_signal != 0) _exit(128 + number);
  received_signal = number;
}

}  // namespace

StopSignal::StopSignal() {
  struct sigaction action {};
  action.sa_handler = note_stop_signal;
  action.sa_flags = SA_RESTART;
  for (const int number : kSignals) sigaction(number, &action, nullptr);
}

StopSignal::~StopSignal() {
  for (const int number : kSignals) std::signal(number, SIG_DFL);
}

int StopSignal::received() const {
  return received_signal;
}

}  // namespace dm
