// Deliberate faults for the tests of what the trainer promises: `--inject rank=R,step=S,point=P,fault=F`.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace dm {

enum class Fault : std::uint8_t {
  none,
  kill,         ///< raise(SIGKILL): the process is gone.
  hang,         ///< Sleeps for ever.
  error,        ///< Throws Error.
  nan,          ///< The caller puts a NaN into what it has in hand.
  disk_full,    ///< The caller behaves as if write returned ENOSPC.
  short_write,  ///< The caller behaves as if write took half of the bytes and then failed.
  fsync,        ///< The caller behaves as if fsync returned EIO.
  close,        ///< The caller behaves as if close returned EIO.
};

/// What was asked for on the command line; passed to whoever has a point to offer. An injector of a rank without
/// a matching request costs one comparison a point.
class FaultInjector {
 public:
  FaultInjector() = default;
  /// Parses requests of the form "rank=R,step=S,point=P,fault=F", several separated by ';'. Empty text asks for nothing.
  /// Throws Error (usage) that names the bad word and the known points and faults.
  FaultInjector(std::string_view requests, int rank);

  /// The current optimizer step, told by the trainer.
  void set_step(std::int64_t step) { step_ = step; }
  /// Called where a fault may happen. kill, hang and error happen here; the others are returned for the caller to act on.
  /// Each request fires once.
  Fault at(std::string_view point);

 private:
  struct Request {
    std::int64_t step;
    std::string point;
    Fault fault;
    bool done = false;
  };
  std::vector<Request> requests_;
  std::int64_t step_ = 0;
};

/// The points that exist: "forward", "backward", "reduce", "gradient", "save:before_files", "save:half_shard",
/// "save:after_shards", "save:before_rename", "save:before_latest", "save:write", "save:fsync", "save:close", "data".
const std::vector<std::string_view>& fault_points();

}  // namespace dm
