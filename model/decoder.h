// Recurrent mode: the model fed piece by piece from a state of constant size, for generation.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "model/language_model.h"
#include "runtime/buffer.h"

namespace dm {

/// The state is, for each layer, the hidden state [B, D, N] and the last W−1 inputs of the convolution, whatever the length
/// of the text so far. A dense layer reads the states of the layers below at the same token, which their recurrences give.
/// Tensor-parallel like the model: every rank of the group makes the same calls.
class Decoder {
 public:
  /// For `batch` texts, fed at most `max_tokens` at a time. `model` and `report` outlive the decoder.
  Decoder(const LanguageModel& model, std::int64_t batch, std::int64_t max_tokens, Device device, MemoryReport& report);

  /// Continues every text by tokens [B, T] i32, T ≤ max_tokens; logits [B, T, V_padded / ranks] are of the token after each.
  void feed(Stream& stream, const Tensor& tokens, const Tensor& logits);
  /// Forgets the texts.
  void reset(Stream& stream);

 private:
  struct LayerState {
    Tensor conv_history;  ///< [B, W−1, D]
    Tensor before;        ///< [B, D, N] ahead of the piece being fed: the layers above start from it.
    Tensor after;         ///< [B, D, N] behind it.
  };

  void run(Stream& stream, Arena& arena, const Tensor& tokens, const Tensor& logits);

  const LanguageModel& model_;
  std::int64_t batch_;
  std::int64_t max_tokens_;
  Buffer state_memory_;
  std::vector<LayerState> states_;
  std::optional<Arena> arena_;
};

}  // namespace dm
