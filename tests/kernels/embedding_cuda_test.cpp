// The embedding on the GPU against the CPU: shards, frequent tokens whose runs pass many chunks, and more tokens than one
// piece.
#include "kernels/embedding.h"

#include <fmt/format.h>

#include "tests/kernels/cuda_oracle.h"

namespace dm {
namespace {

using oracle::Side;
using oracle::Twin;

struct Case {
  std::int64_t tokens, vocabulary, first_row, rows, C, offset;
};
constexpr Case kCases[] = {{1, 4, 0, 4, 1, 0},
                           {37, 100, 0, 100, 24, 0},
                           {64, 3, 1, 1, 37, 0},
                           {300, 100, 50, 50, 24, 1},
                           {300, 10, 20, 5, 24, 0},
                           {33, 1, 0, 1, 8, 0},
                           {2048, 32'000, 0, 32'000, 768, 0},
                           {3000, 50'304, 25'152, 25'152, 100, 0},
                           {500, 7, 0, 7, 2560, 0},
                           {100, 50, 0, 50, 8200, 0},
                           {5000, 32'000, 0, 32'768, 64, 2},
                           {400, 300, 0, 300, 1024, 0}};

std::string name_of(const Case& at) {
  return fmt::format("{} tokens of {}, rows {} + {}, C {}, offset {}", at.tokens, at.vocabulary, at.first_row, at.rows, at.C,
                     at.offset);
}

class EmbeddingCuda : public oracle::CudaTest {};

TEST_F(EmbeddingCuda, Forward) {
  for (const DType dtype : oracle::kComputeTypes) {
    for (const Case& at : kCases) {
      set_offset(at.offset);
      Twin &tokens = this->tokens({at.tokens}, at.vocabulary), &table = random("table", {at.rows, at.C}, dtype);
      Twin& out = overwritten({at.tokens, at.C});
      compare([&](Stream& stream, Side on) { embedding_forward(stream, on(tokens), on(table), at.first_row, on(out)); },
              {{out, 0}}, name_of(at));
      clear();
    }
  }
}

TEST_F(EmbeddingCuda, Backward) {
  for (const Case& at : kCases) {
    set_offset(at.offset);
    Twin &tokens = this->tokens({at.tokens}, at.vocabulary), &dout = random("dout", {at.tokens, at.C});
    Twin& dtable = random("dtable", {at.rows, at.C});
    compare([&](Stream& stream, Side on) { embedding_backward(stream, on(tokens), on(dout), at.first_row, on(dtable)); },
            {dtable}, name_of(at));
    clear();
  }
}

TEST_F(EmbeddingCuda, BackwardOfFrequentTokensAndOfSeveralPieces) {
  for (const std::int64_t count : {65'536, 2'000'000}) {
    const std::int64_t vocabulary = 1000, C = 4;
    const RandomStream stream(1, "frequent");
    std::vector<float> values(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float u = stream.uniform(i);
      values[i] = u < 0.05f ? 17.0f : u < 0.3f ? 999.0f : std::floor(u * static_cast<float>(vocabulary));
    }
    Twin &tokens = of({count}, values, DType::i32), &dout = random("dout", {count, C}),
         &dtable = random("dtable", {vocabulary, C});
    compare([&](Stream& s, Side on) { embedding_backward(s, on(tokens), on(dout), 0, on(dtable)); },
            {{dtable, 2e-4}},  // the CPU's sum of half a million numbers one after the other is no better
            fmt::format("{} tokens", count));
    clear();
  }
}

}  // namespace
}  // namespace dm
