// The embedding over shards of the vocabulary: lookup, gradient, and repeated tokens.
#include "kernels/embedding.h"

#include <cstdint>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/kernels/oracle.h"

namespace dm {
namespace {

using oracle::error_of;
using oracle::Guarded;
using oracle::Overwritten;
using oracle::Random;

class Embedding : public ::testing::Test {
 protected:
  static constexpr std::int64_t kVocabulary = 12;

  Embedding() {
    for (std::int64_t i = 0; i < kTokens; ++i) tokens[i] = static_cast<std::int32_t>((i * i + 3) % kVocabulary);
    tokens[0] = 0;
    tokens[1] = kVocabulary - 1;
  }

  static constexpr std::int64_t kTokens = 14;
  Stream stream{Device::cpu()};
  Guarded<std::int32_t> tokens{{2, kTokens / 2}, 0};
};

TEST_F(Embedding, TheShardsAddUpToTheTable) {
  for (const std::int64_t columns : {1, 5, 16, 37}) {
    Random table("table", {kVocabulary, columns});
    for (const std::int64_t shards : {1, 2, 3}) {
      const std::int64_t rows = kVocabulary / shards;
      std::vector<float> sum(static_cast<std::size_t>(kTokens * columns), 0.0f);
      for (std::int64_t shard = 0; shard < shards; ++shard) {
        Overwritten out({2, kTokens / 2, columns});
        embedding_forward(stream, tokens.tensor(), table.tensor().slice(shard * rows, rows), shard * rows, out.tensor());
        for (std::int64_t i = 0; i < kTokens * columns; ++i) {
          const std::int64_t token = tokens[i / columns];
          if (token / rows != shard) {
            ASSERT_EQ(out[i], 0.0f);
          }
          sum[static_cast<std::size_t>(i)] += out[i];
        }
      }
      for (std::int64_t i = 0; i < kTokens * columns; ++i) {
        ASSERT_EQ(sum[static_cast<std::size_t>(i)], table[tokens[i / columns] * columns + i % columns]);
      }
    }
  }
}

TEST_F(Embedding, BackwardAddsEveryOccurrenceOfAToken) {
  for (const std::int64_t columns : {1, 5, 16, 37}) {
    Random dout("dout", {2, kTokens / 2, columns});
    constexpr std::int64_t kFirst = 4, kRows = 8;  // the shard without the first four tokens
    Random dtable("dtable", {kRows, columns}), again("dtable", {kRows, columns});
    std::vector<double> expected = dtable.as_double();
    for (std::int64_t i = 0; i < kTokens * columns; ++i) {
      const std::int64_t row = tokens[i / columns] - kFirst;
      if (row >= 0) expected[static_cast<std::size_t>(row * columns + i % columns)] += static_cast<double>(dout[i]);
    }
    embedding_backward(stream, tokens.tensor(), dout.tensor(), kFirst, dtable.tensor());
    embedding_backward(stream, tokens.tensor(), dout.tensor(), kFirst, again.tensor());
    EXPECT_CLOSE(dtable, expected, 2e-7) << columns;
    EXPECT_TRUE(oracle::same_bits(dtable.values(), again.values()));
  }
}

TEST_F(Embedding, BackwardIsTheGradient) {
  constexpr std::int64_t kColumns = 3;
  Random dout("dout", {2, kTokens / 2, kColumns}), table("table", {kVocabulary, kColumns});
  std::vector<double> values = table.as_double();
  const auto loss = [&] {
    double sum = 0;
    for (std::int64_t i = 0; i < kTokens * kColumns; ++i) {
      sum += static_cast<double>(dout[i]) * values[static_cast<std::size_t>(tokens[i / kColumns] * kColumns + i % kColumns)];
    }
    return sum;
  };
  Guarded<float> dtable({kVocabulary, kColumns}, 0.0f);
  embedding_backward(stream, tokens.tensor(), dout.tensor(), 0, dtable.tensor());
  EXPECT_CLOSE(dtable, oracle::finite_differences(values, loss), 1e-6);
}

TEST_F(Embedding, NamesTheWrongTensor) {
  Random table("table", {kVocabulary, 8}), out("out", {2, kTokens / 2, 8});
  EXPECT_EQ(error_of([&] { embedding_forward(stream, tokens.tensor(), table.tensor().flat(), 0, out.tensor()); }),
            "embedding_forward: table must be [vocabulary rows, channels]");
  EXPECT_EQ(error_of([&] { embedding_forward(stream, out.tensor(), table.tensor(), 0, out.tensor()); }),
            "embedding_forward: tokens is float32 [2, 7, 8], expected int32 of 112 elements");
  EXPECT_EQ(error_of([&] { embedding_forward(stream, tokens.tensor(), table.tensor(), 0, out.tensor().slice(0, 1)); }),
            "embedding_forward: out is float32 [1, 7, 8], expected float32 [14 rows, 8]");
  EXPECT_EQ(error_of([&] { embedding_backward(stream, tokens.tensor(), table.tensor(), 0, table.tensor()); }),
            "embedding_backward: dout is float32 [12, 8], expected float32 [14 rows, 8]");
}

}  // namespace
}  // namespace dm
