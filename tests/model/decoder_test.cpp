// Recurrent mode against the parallel model: one token at a time, in pieces, and all at once.
#include "model/decoder.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include <gtest/gtest.h>

#include "tests/kernels/oracle.h"
#include "tests/model/model_rank.h"

namespace dm {
namespace {

class RecurrentMode : public ::testing::TestWithParam<std::int64_t> {
 protected:
  /// The logits of the batch's texts, `piece` tokens at a time.
  std::vector<float> decode(Decoder& decoder, std::int64_t piece) {
    const std::int64_t B = batch_.shape[0], T = batch_.shape[1], columns = rank_.config().padded_vocabulary();
    std::vector<float> all(static_cast<std::size_t>(B * T * columns));
    for (std::int64_t begin = 0; begin < T; begin += piece) {
      const std::int64_t count = std::min(piece, T - begin);
      std::vector<std::int32_t> tokens;
      for (std::int64_t b = 0; b < B; ++b) {
        const auto first = batch_.tokens.begin() + b * T + begin;
        tokens.insert(tokens.end(), first, first + count);
      }
      std::vector<float> logits(static_cast<std::size_t>(B * count * columns), std::nanf(""));
      decoder.feed(rank_.stream(), Tensor::of(tokens.data(), {B, count}), Tensor::of(logits.data(), {B, count, columns}));
      for (std::int64_t b = 0; b < B; ++b) {
        std::copy_n(logits.begin() + b * count * columns, count * columns, all.begin() + (b * T + begin) * columns);
      }
    }
    return all;
  }

  ModelRank rank_{small_config(GetParam(), /*layers=*/4)};
  Batch batch_ = Batch::random(9, 2, 40, rank_.config().vocabulary);
};

TEST_P(RecurrentMode, AnyPiecesGiveTheParallelModelsLogits) {
  const std::vector<float> expected = rank_.logits(batch_);
  for (const std::int64_t piece : {1, 3, 40}) {
    Decoder decoder(rank_.model(), 2, piece, Device::cpu(), rank_.report());
    EXPECT_LT(relative_error(decode(decoder, piece), expected), 1e-6) << "pieces of " << piece;
  }
}

TEST_P(RecurrentMode, PiecesMayBeShorterThanPlanned) {
  const std::vector<float> expected = rank_.logits(batch_);
  Decoder decoder(rank_.model(), 2, 17, Device::cpu(), rank_.report());
  EXPECT_LT(relative_error(decode(decoder, 1), expected), 1e-6);
}

TEST_P(RecurrentMode, TheStateDoesNotGrowWithTheText) {
  Decoder decoder(rank_.model(), 2, 3, Device::cpu(), rank_.report());
  const std::int64_t before = rank_.report().total();
  decode(decoder, 3);
  EXPECT_EQ(rank_.report().total(), before);
  const auto& entries = rank_.report().entries();
  const auto states =
      std::find_if(entries.begin(), entries.end(), [](const auto& e) { return e.first == "recurrent states"; });
  ASSERT_NE(states, entries.end());
  EXPECT_EQ(states->second, 4 * 2 * (3 * 48 + 2 * 48 * 4) * 4);  // layers, texts, conv inputs and two states, bytes
}

TEST_P(RecurrentMode, ResetForgetsTheText) {
  Decoder decoder(rank_.model(), 2, 5, Device::cpu(), rank_.report());
  const std::vector<float> first = decode(decoder, 5);
  EXPECT_FALSE(oracle::same_bits(decode(decoder, 5), first)) << "the second text continues the first";
  decoder.reset(rank_.stream());
  EXPECT_TRUE(oracle::same_bits(decode(decoder, 5), first));
}

TEST_P(RecurrentMode, RefusesMoreThanItWasMadeFor) {
  Decoder decoder(rank_.model(), 2, 5, Device::cpu(), rank_.report());
  EXPECT_THROW(decode(decoder, 6), Error);
  Decoder one_text(rank_.model(), 1, 5, Device::cpu(), rank_.report());
  EXPECT_THROW(decode(one_text, 5), Error);
}

INSTANTIATE_TEST_SUITE_P(DenseDepth, RecurrentMode, ::testing::Values(0, 1, 2, 4));

}  // namespace
}  // namespace dm
