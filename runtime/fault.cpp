// Parses fault requests and fires them.
#include "runtime/fault.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <csignal>
#include <utility>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "runtime/error.h"

namespace dm {
namespace {

struct FaultName {
  Fault fault;
  std::string_view name;
};
constexpr std::array<FaultName, 8> kFaults{{
    {Fault::kill, "kill"},
    {Fault::hang, "hang"},
    {Fault::error, "error"},
    {Fault::nan, "nan"},
    {Fault::disk_full, "disk_full"},
    {Fault::short_write, "short_write"},
    {Fault::fsync, "fsync"},
    {Fault::close, "close"},
}};

// Whether somebody acts on the fault at the point: a request that nobody would see must not look like a passed test.
bool has_effect(Fault fault, std::string_view point) {
  switch (fault) {
    case Fault::disk_full:
    case Fault::short_write:
      return point == "save:write";
    case Fault::fsync:
      return point == "save:fsync";
    case Fault::close:
      return point == "save:close";
    case Fault::nan:
      return !point.starts_with("save:") && point != "data";
    default:
      return true;
  }
}

[[noreturn]] void refuse(std::string_view request, const std::string& why) {
  std::vector<std::string_view> faults;
  for (const FaultName& known : kFaults) faults.push_back(known.name);
  fail(fmt::format("--inject \"{}\": {}; write rank=R,step=S,point=P,fault=F with P one of {} and F one of {}", request, why,
                   fmt::join(fault_points(), ", "), fmt::join(faults, ", ")),
       ExitCode::usage);
}

std::int64_t parse_count(std::string_view request, std::string_view key, std::string_view value) {
  std::int64_t count = -1;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), count);
  if (error != std::errc() || end != value.data() + value.size() || count < 0) {
    refuse(request, fmt::format("{}={} is not a count", key, value));
  }
  return count;
}

Fault parse_fault(std::string_view request, std::string_view value) {
  for (const FaultName& known : kFaults) {
    if (known.name == value) return known.fault;
  }
  refuse(request, fmt::format("unknown fault {}", value));
}

// Cuts the text before the next `separator` off `rest`.
std::string_view next_part(std::string_view& rest, char separator) {
  const std::size_t at = std::min(rest.find(separator), rest.size());
  const std::string_view part = rest.substr(0, at);
  rest.remove_prefix(std::min(at + 1, rest.size()));
  return part;
}

}  // namespace

const std::vector<std::string_view>& fault_points() {
  static const std::vector<std::string_view> points{"forward",
                                                    "backward",
                                                    "reduce",
                                                    "gradient",
                                                    "save:before_files",
                                                    "save:half_shard",
                                                    "save:after_shards",
                                                    "save:before_rename",
                                                    "save:before_latest",
                                                    "save:write",
                                                    "save:fsync",
                                                    "save:close",
                                                    "data"};
  return points;
}

FaultInjector::FaultInjector(std::string_view requests, int rank) {
  while (!requests.empty()) {
    const std::string_view text = next_part(requests, ';');
    std::int64_t of_rank = -1;
    Request request{-1, "", Fault::none};
    for (std::string_view rest = text; !rest.empty();) {
      std::string_view value = next_part(rest, ',');
      const std::string_view key = next_part(value, '=');
      if (key == "rank") {
        of_rank = parse_count(text, key, value);
      } else if (key == "step") {
        request.step = parse_count(text, key, value);
      } else if (key == "point") {
        request.point = value;
      } else if (key == "fault") {
        request.fault = parse_fault(text, value);
      } else {
        refuse(text, fmt::format("unknown word {}", key));
      }
    }
    if (of_rank < 0 || request.step < 0 || request.point.empty() || request.fault == Fault::none) {
      refuse(text, "rank, step, point or fault is missing");
    }
    if (std::find(fault_points().begin(), fault_points().end(), request.point) == fault_points().end()) {
      refuse(text, fmt::format("unknown point {}", request.point));
    }
    if (!has_effect(request.fault, request.point)) refuse(text, "that fault cannot happen at that point");
    if (of_rank == rank) requests_.push_back(std::move(request));
  }
}

Fault FaultInjector::at(std::string_view point) {
  for (Request& request : requests_) {
    if (request.done || request.step != step_ || request.point != point) continue;
    request.done = true;
    switch (request.fault) {
      case Fault::kill:
        std::raise(SIGKILL);
        break;
      case Fault::hang:
        for (;;) ::pause();
      case Fault::error:
        fail(fmt::format("injected error at {} of step {}", point, step_), ExitCode::retryable);
      default:
        return request.fault;
    }
  }
  return Fault::none;
}

}  // namespace dm
