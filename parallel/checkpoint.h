// Sharded checkpoints: pieces of global tensors in safetensors files, a manifest written last, and a commit that is one
// rename.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "parallel/communicator.h"
#include "parallel/shard.h"
#include "runtime/tensor.h"

namespace dm {

class FaultInjector;
class Log;

/// `value` is the authoritative float32 parameter (the optimizer's master where values are kept in bfloat16).
enum class StateKind : std::uint8_t { value, first_moment, second_moment };
std::string_view name_of(StateKind kind);

/// One rectangle of one parameter's state in this rank's memory: `data` is f32, contiguous, row-major, `where.numel()`
/// elements.
struct StatePiece {
  std::string parameter;
  StateKind kind = StateKind::value;
  Shape global_shape;
  Rectangle where;
  Tensor data;
};

/// Writes `<directory>/step_%08d` from the pieces of all ranks of `world`, each logical element exactly once over all ranks.
/// Collective. Either the whole checkpoint becomes visible or nothing does: files go to a temporary sibling, each is
/// fsynced, the manifest (with the XXH3-128 of every piece and file header and of itself) comes last, then one rename, then
/// `latest` is replaced. A checkpoint of the same step is replaced. `metadata` is any JSON object (config, data state,
/// fingerprints); rank 0's is kept. Returns the path. Throws Error naming the parameter when the pieces do not tile it,
/// before anything is written. On a failure on any rank every rank throws Error (naming rank, file and errno), nothing is
/// left behind, and what was there before is untouched. Offers the fault points "save:...".
std::filesystem::path save_checkpoint(Communicator& world, const std::filesystem::path& directory, std::int64_t step,
                                      const std::vector<StatePiece>& pieces, const nlohmann::json& metadata,
                                      FaultInjector& faults);

/// One failed check of a checkpoint: file, tensor (may be empty) and byte offset, in words.
struct Damage {
  std::string file;
  std::string message;
};

/// A checkpoint on disk with an intact manifest.
class Checkpoint {
 public:
  /// Reads and checks the manifest alone. Throws Error naming the file and what is wrong with it.
  static Checkpoint open(const std::filesystem::path& path);

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::filesystem::path& path() const;
  std::int64_t step() const;
  const nlohmann::json& metadata() const;
  const nlohmann::json& manifest() const;

  /// Fills every piece's data from the stored pieces that overlap it, whatever grid wrote them, and checks the hash of every
  /// stored piece and file header that it reads. Local (not collective). Throws Error naming file, tensor and offset when
  /// something is damaged or missing.
  void load(const std::vector<StatePiece>& pieces) const;

  /// Reads every byte of every file; returns what is wrong (empty: intact).
  std::vector<Damage> verify() const;
  /// Looks at the size and the header of every file and at no data.
  std::vector<Damage> verify_files() const;

 private:
  struct Impl;
  explicit Checkpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// The checkpoint directories under `directory`, newest step first, without looking inside.
std::vector<std::filesystem::path> list_checkpoints(const std::filesystem::path& directory);

/// The newest checkpoint whose every byte verifies, skipping damaged ones with a warning that names file and tensor, or
/// nothing. A damaged or dangling `latest` is reported and otherwise ignored. Not collective: rank 0 calls it and broadcasts
/// the answer.
std::optional<std::filesystem::path> newest_intact_checkpoint(const std::filesystem::path& directory, const Log& log);

/// Removes leftovers of interrupted saves (temporary siblings), and brings back a checkpoint that one of them was about to
/// replace. Rank 0 calls it while it holds the run directory's lock.
void remove_partial_checkpoints(const std::filesystem::path& directory, const Log& log);

/// Keeps the newest `keep` intact checkpoints (at least one) and every one whose step is a multiple of `keep_every` (0:
/// none), and removes the older others. Damaged ones among the newest are left where they are and do not count. The first
/// that counts is read in full; the others by manifest, file sizes and headers. So the last intact checkpoint is never
/// removed. Rank 0 calls it after a successful save.
void retain_checkpoints(const std::filesystem::path& directory, int keep, std::int64_t keep_every, const Log& log);

}  // namespace dm
