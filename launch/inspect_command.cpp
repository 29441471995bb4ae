// `densemamba inspect`: prints a checkpoint's step, metadata and parameters.
#include <cmath>
#include <iostream>
#include <map>
#include <string>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "launch/checkpoint_path.h"
#include "launch/commands.h"
#include "parallel/checkpoint.h"
#include "parallel/manifest.h"
#include "runtime/buffer.h"
#include "runtime/error.h"
#include "runtime/options.h"

namespace dm {
namespace {

/// Every value of the metadata on its own line: "config.train.batch = 8".
void print_metadata(const nlohmann::json& metadata, const std::string& prefix) {
  for (const auto& [key, value] : metadata.items()) {
    const std::string name = prefix.empty() ? key : prefix + "." + key;
    if (value.is_structured() && !value.empty()) {
      print_metadata(value, name);
    } else {
      std::cout << fmt::format("  {} = {}\n", name, value.is_string() ? value.get<std::string>() : value.dump());
    }
  }
}

/// The square root of the sum of squares of the whole parameter.
double norm_of(const Checkpoint& checkpoint, const std::string& parameter, const Shape& shape) {
  MemoryReport report;
  const Buffer buffer(parameter, shape.numel() * size_of(DType::f32), Device::cpu(), report);
  const Tensor values = buffer.tensor(shape, DType::f32);
  const Shape matrix = as_matrix(shape);
  checkpoint.load({{parameter, StateKind::value, shape, {0, 0, matrix[0], matrix[1]}, values}});
  double sum = 0;
  for (std::int64_t i = 0; i < shape.numel(); ++i) sum += std::pow(static_cast<double>(values.as<float>()[i]), 2);
  return std::sqrt(sum);
}

void print_parameters(const Checkpoint& checkpoint, const Manifest& manifest, bool norms) {
  std::map<std::string, Shape> shapes;
  for (const StoredPiece& piece : manifest.pieces) shapes.try_emplace(piece.parameter, piece.global_shape);
  std::size_t width = 0;
  std::int64_t total = 0;
  for (const auto& [name, shape] : shapes) {
    width = std::max(width, name.size());
    total += shape.numel();
  }
  std::cout << fmt::format("{} parameters in {} tensors (vocabulary padding included)\n", total, shapes.size());
  for (const auto& [name, shape] : shapes) {
    std::cout << fmt::format("  {:<{}}  {}", name, width, to_string(shape));
    if (norms) std::cout << fmt::format("  norm {:.6g}", norm_of(checkpoint, name, shape));
    std::cout << "\n";
  }
}

}  // namespace

int inspect_command(int argc, char** argv) {
  std::string path;
  bool norms = false;
  OptionTable table("densemamba inspect PATH [--norms]",
                    "Prints what a checkpoint, or the newest one of a run directory, holds.");
  table.add("path", path, "A checkpoint or a run directory.");
  table.add("norms", norms, "Read every value and print the norm of each parameter.");
  table.positional("path");
  if (table.parse(argc, argv, std::cout) != ParseOutcome::run) return static_cast<int>(ExitCode::ok);
  if (path.empty()) fail("give a checkpoint or a run directory: densemamba inspect PATH", ExitCode::usage);

  const Checkpoint checkpoint = Checkpoint::open(checkpoints_at(path).front());
  const Manifest manifest = manifest_from_json(checkpoint.manifest(), checkpoint.path().string());
  std::int64_t bytes = 0;
  for (const StoredFile& file : manifest.files) bytes += file.bytes;
  std::cout << fmt::format("{}: step {}, {} files, {:.1f} MB\n", checkpoint.path().string(), checkpoint.step(),
                           manifest.files.size(), static_cast<double>(bytes) / 1e6);
  print_metadata(checkpoint.metadata(), "");
  print_parameters(checkpoint, manifest, norms);
  return static_cast<int>(ExitCode::ok);
}

}  // namespace dm
