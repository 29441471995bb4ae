// The DenseMamba language model: one training step's forward and backward, evaluation, and logits.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "model/dense_history.h"
#include "model/vocabulary.h"

namespace dm {

/// Embedding, L × (residual + RMSNorm, mixer), final RMSNorm, tied head. Owns no memory: parameters are the store's,
/// activations come from the arena of each call and are given back at its end. Calls are the same on every rank of the
/// tensor group, with the same tokens. Run it on a planning stream with a planning arena to learn the arena's size.
class LanguageModel {
 public:
  /// Sequences × channels of a rank whose scan fills a GPU: halves of fewer lose more in it than what they hide.
  static constexpr std::int64_t kFillsGpu = 8192;

  /// `config` is resolved; all three outlive the model. Micro-batches go forward in halves (`Parts`) over a tensor group
  /// whose GPUs have `worth_halving` sequences × channels in each; on the CPU always.
  LanguageModel(const ModelConfig& config, const ParameterStore& store, Communicator& tensor,
                std::int64_t worth_halving = kFillsGpu);
  LanguageModel(const LanguageModel&) = delete;
  LanguageModel& operator=(const LanguageModel&) = delete;

  struct Options {
    Recompute recompute = Recompute::none;
    std::int64_t loss_chunk = kLossChunk;          ///< Tokens whose logits exist at once.
    Accumulate gradients = Accumulate::overwrite;  ///< What becomes of those that were there.
  };
  /// Told where in a step blocks of parameters (ParameterSpec::block) come into play; either may be empty.
  struct BlockHooks {
    std::function<void(int block)> before_use;     ///< Before the first op that reads the block's values, in order of use.
    std::function<void(int block)> gradient_done;  ///< When all gradients of the block are complete.
  };

  /// tokens, targets [B, T] i32. loss_sum[0] += Σ cross-entropy; gradients = (or +=) scale · d(Σ cross-entropy).
  void forward_backward(Stream& stream, Arena& arena, const Tensor& tokens, const Tensor& targets, float scale,
                        const Options& options, const Tensor& loss_sum, const BlockHooks& hooks) const;

  /// loss_sum[0] += Σ cross-entropy, no gradients.
  void evaluate(Stream& stream, Arena& arena, const Tensor& tokens, const Tensor& targets, const Options& options,
                const Tensor& loss_sum) const;

  /// This rank's columns of the logits of every token: logits [B, T, V_padded / ranks], f32 or compute dtype.
  void logits(Stream& stream, Arena& arena, const Tensor& tokens, const Tensor& logits) const;

  const ModelConfig& config() const { return config_; }
  const std::vector<Mixer>& mixers() const { return mixers_; }
  const Parameter& norm(std::int64_t layer) const { return norms_[static_cast<std::size_t>(layer)]; }
  const Parameter& final_norm() const { return final_norm_; }
  const VocabularyParallel& vocabulary() const { return vocabulary_; }
  TensorGroup& tensor() const { return *tensor_; }
  DType compute_dtype() const { return compute_; }
  /// D of this rank.
  std::int64_t local_channels() const { return config_.d_inner() / tensor_->ranks().size(); }

 private:
  /// The normalised output of the last layer, and what its backward reads. Of residual and rstd this rank's own rows.
  struct Top {
    Tensor residual;  ///< [B, T, C] f32.
    Tensor rstd;      ///< [B, T] f32.
    Tensor x;         ///< [B, T, C].
  };

  /// How a micro-batch crosses the tensor group.
  struct Exchange {
    Parts parts;
    Tensor small;  ///< [B, T, R+2N+G] f32: the inbox of the mixers' small sums, or absent.

    /// The inbox of `sum`, which is one of them.
    Tensor small_of(const Tensor& sum) const { return small ? small.flat(0, sum.numel()) : Tensor(); }
  };

  ActivationShape shape_of(const Tensor& tokens) const;
  /// Inboxes come from `arena`.
  Exchange exchange(Arena& arena, const ActivationShape& shape) const;
  Top forward(Stream& stream, Arena& arena, const Tensor& tokens, const Exchange& exchange, DenseHistory& history,
              const BlockHooks& hooks) const;
  void backward(Stream& stream, Arena& arena, const Tensor& tokens, const Exchange& exchange, const Top& top,
                const Tensor& dtop, DenseHistory& history, Accumulate gradients, const BlockHooks& hooks) const;
  /// Makes again what backward of `layer` reads and the rings no longer hold.
  void restore(Stream& stream, std::int64_t layer, DenseHistory& history) const;

  const ModelConfig& config_;
  DType compute_;
  std::int64_t worth_halving_;
  std::unique_ptr<TensorGroup> tensor_;
  VocabularyParallel vocabulary_;
  std::vector<Parameter> norms_;
  std::vector<Mixer> mixers_;
  Parameter final_norm_;
  Tensor small_gradients_;  // of all parameters that are no matrices
};

}  // namespace dm
