// Saving: stages that all ranks finish together or undo together.
#include <algorithm>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "parallel/agreement.h"
#include "parallel/checkpoint.h"
#include "parallel/checkpoint_directory.h"
#include "parallel/manifest.h"
#include "runtime/fault.h"
#include "runtime/file.h"
#include "runtime/hash.h"
#include "runtime/safetensors.h"

namespace dm {
namespace fs = std::filesystem;
namespace {

/// One save. Every member function is called by all ranks in the same order; rank 0 alone touches what is shared.
class Save {
 public:
  Save(Communicator& world, const fs::path& directory, std::int64_t step, const std::vector<StatePiece>& pieces,
       FaultInjector& faults)
      : world_(world), paths_(directory, step), step_(step), pieces_(pieces), faults_(faults) {}

  fs::path run(const nlohmann::json& metadata);

 private:
  void describe_shard();
  void collect_manifest(const std::vector<std::string>& parts, const nlohmann::json& metadata);
  void make_directory();
  void write_shard();
  void write_manifest();
  void make_visible();
  void roll_back() noexcept;

  void stage(const std::function<void()>& work) {
    run_on_all(world_, fmt::format("checkpoint of step {} not saved", step_), work, [this] { roll_back(); });
  }
  bool leads() const { return world_.rank() == 0; }

  Communicator& world_;
  CheckpointPaths paths_;
  std::int64_t step_;
  const std::vector<StatePiece>& pieces_;
  FaultInjector& faults_;

  std::string header_;  // this rank's safetensors header
  Manifest manifest_;   // of this rank's shard; from collect_manifest() on, rank 0's is the whole checkpoint's

  // What rank 0 has to undo.
  bool made_directory_ = false;
  bool put_aside_ = false;
  bool visible_ = false;
  bool touched_latest_ = false;
  std::optional<std::string> former_latest_;
};

fs::path Save::run(const nlohmann::json& metadata) {
  stage([&] { describe_shard(); });
  const std::vector<std::string> parts = gather_texts(world_, to_json(manifest_).dump());
  stage([&] {
    if (leads()) {
      collect_manifest(parts, metadata);
      make_directory();
    }
    faults_.at("save:before_files");
  });
  stage([&] {
    write_shard();
    faults_.at("save:after_shards");
  });
  stage([&] {
    if (leads()) write_manifest();
    faults_.at("save:before_rename");
  });
  stage([&] {
    if (leads()) make_visible();
    faults_.at("save:before_latest");
  });
  stage([&] {
    if (!leads()) return;
    touched_latest_ = true;
    write_latest(paths_.directory, paths_.final.filename().string(), faults_);
    std::error_code left_for_the_next_start;  // nothing can fail any more: the other ranks do nothing in this stage
    fs::remove_all(paths_.replaced, left_for_the_next_start);
  });
  return paths_.final;
}

// Checks this rank's pieces and lays them out in its file. A rank without pieces writes no file.
void Save::describe_shard() {
  manifest_.step = step_;
  if (pieces_.empty()) return;
  std::vector<SafetensorsTensor> tensors;
  for (const StatePiece& piece : pieces_) {
    check_piece(piece);
    StoredPiece stored{piece.parameter, piece.kind, piece.global_shape, piece.where, 0, 0, ""};
    stored.xxh3 = xxh3_hex(piece.data.data(), stored.bytes());
    tensors.push_back({stored.tensor_name(), DType::f32, {piece.where.rows, piece.where.columns}, piece.data.data()});
    manifest_.pieces.push_back(std::move(stored));
  }
  header_ = safetensors_header(tensors);
  const auto header_bytes = static_cast<std::int64_t>(header_.size());
  std::int64_t at = header_bytes;
  for (StoredPiece& stored : manifest_.pieces) {
    stored.offset = at;
    at += stored.bytes();
  }
  manifest_.files.push_back({fmt::format("shard_{}.safetensors", world_.rank()), at, header_bytes, xxh3_hex(header_)});
}

void Save::collect_manifest(const std::vector<std::string>& parts, const nlohmann::json& metadata) {
  Manifest whole;
  whole.step = step_;
  whole.metadata = metadata;
  for (std::size_t rank = 0; rank < parts.size(); ++rank) {
    const std::string what = fmt::format("pieces of rank {}", rank);
    Manifest part = manifest_from_json(nlohmann::json::parse(parts[rank]), what);
    if (part.step != step_) fail(fmt::format("{}: saves step {}, rank 0 saves step {}", what, part.step, step_));
    const int first_file = static_cast<int>(whole.files.size());
    for (StoredFile& file : part.files) whole.files.push_back(std::move(file));
    for (StoredPiece& piece : part.pieces) {
      piece.file += first_file;
      whole.pieces.push_back(std::move(piece));
    }
  }
  check_tiling(whole.pieces, "pieces of all ranks");
  manifest_ = std::move(whole);
}

void Save::make_directory() {
  made_directory_ = true;
  try {
    former_latest_ = read_latest(paths_.directory);
  } catch (const Error&) {
    // A damaged `latest` is about to be replaced by a good one.
  }
  fs::remove_all(paths_.partial);
  fs::create_directories(paths_.partial);
  sync_directory(fs::absolute(paths_.directory).parent_path(), &faults_);  // the directory itself may be new
}

void Save::write_shard() {
  if (pieces_.empty()) return;
  File file = File::create(paths_.partial / fmt::format("shard_{}.safetensors", world_.rank()), &faults_);
  file.write(header_);
  std::int64_t total = 0;
  for (const StatePiece& piece : pieces_) total += piece.data.bytes();
  const std::int64_t half = total / 2;
  std::int64_t written = 0;
  for (const StatePiece& piece : pieces_) {
    const auto* bytes = static_cast<const std::byte*>(piece.data.data());
    const std::int64_t count = piece.data.bytes();
    const std::int64_t before_half = std::clamp<std::int64_t>(half - written, 0, count);
    if (before_half > 0) file.write(bytes, before_half);
    if (written <= half && half < written + count) faults_.at("save:half_shard");
    if (before_half < count) file.write(bytes + before_half, count - before_half);
    written += count;
  }
  file.sync();
  file.close();
}

void Save::write_manifest() {
  write_file(paths_.partial / kManifestName, seal(to_json(manifest_).dump()), &faults_);
  sync_directory(paths_.partial, &faults_);
}

void Save::make_visible() {
  if (fs::exists(paths_.final)) {
    // A rename cannot replace a directory with files in it. Between the two renames the older checkpoint of this step is
    // under a name from which remove_partial_checkpoints() brings it back.
    fs::remove_all(paths_.replaced);
    rename_path(paths_.final, paths_.replaced);
    put_aside_ = true;
  }
  rename_path(paths_.partial, paths_.final);
  visible_ = true;
  sync_directory(paths_.directory, &faults_);
}

void Save::roll_back() noexcept {
  if (!leads() || !made_directory_) return;
  std::error_code ignored;  // the failure that is being reported is the one that matters
  if (touched_latest_) restore_latest(paths_.directory, former_latest_);
  if (visible_) fs::rename(paths_.final, paths_.partial, ignored);
  if (put_aside_) fs::rename(paths_.replaced, paths_.final, ignored);
  fs::remove_all(paths_.partial, ignored);
}

}  // namespace

fs::path save_checkpoint(Communicator& world, const fs::path& directory, std::int64_t step,
                         const std::vector<StatePiece>& pieces, const nlohmann::json& metadata, FaultInjector& faults) {
  return Save(world, directory, step, pieces, faults).run(metadata);
}

}  // namespace dm
