// Matrix products on the GPU against the CPU: every transpose, type, stride and alignment, odd and real sizes, empty sums.
#include "kernels/matmul.h"

#include <array>

#include <fmt/format.h>

#include "tests/kernels/cuda_oracle.h"

namespace dm {
namespace {

using oracle::Side;
using oracle::Twin;

struct Types {
  DType inputs, result;
};
constexpr Types kTypes[] = {{DType::f32, DType::f32}, {DType::bf16, DType::f32}, {DType::bf16, DType::bf16}};

class MatmulCuda : public oracle::CudaTest {
 protected:
  /// c = op(a)·op(b), or c + that, for every transpose; c's bound is that of sums of k products.
  void all_variants(std::int64_t m, std::int64_t n, std::int64_t k, Types types) {
    for (const Transpose ta : {Transpose::no, Transpose::yes}) {
      for (const Transpose tb : {Transpose::no, Transpose::yes}) {
        for (const Accumulate accumulate : {Accumulate::overwrite, Accumulate::add}) {
          const bool adds = accumulate == Accumulate::add;
          Twin& a = random("a", ta == Transpose::no ? Shape{m, k} : Shape{k, m}, types.inputs);
          Twin& b = random("b", tb == Transpose::no ? Shape{k, n} : Shape{n, k}, types.inputs);
          Twin& c = adds ? random("c", {m, n}, types.result) : overwritten({m, n}, types.result);
          compare([&](Stream& stream, Side on) { matmul(stream, on(a), ta, on(b), tb, on(c), accumulate); }, {c},
                  fmt::format("[{}, {}]·[{}, {}] {}{}{} {} to {}", m, k, k, n, ta == Transpose::yes ? 'T' : 'N',
                              tb == Transpose::yes ? 'T' : 'N', adds ? " added" : "", name_of(types.inputs),
                              name_of(types.result)));
          clear();
        }
      }
    }
  }
};

TEST_F(MatmulCuda, EveryTransposeTypeAndShape) {
  for (const Types types : kTypes) {
    for (const auto& [m, n, k] : {std::array<std::int64_t, 3>{1, 1, 1},
                                  {1, 8, 16},
                                  {7, 5, 3},
                                  {33, 65, 129},
                                  {128, 96, 1024},
                                  {300, 80, 768},
                                  {257, 48, 1536},
                                  {64, 1536, 48},
                                  {96, 1000, 255}}) {
      all_variants(m, n, k, types);
    }
  }
}

TEST_F(MatmulCuda, TensorsThatAreNotAligned) {
  for (const std::int64_t offset : {1, 2, 4}) {
    set_offset(offset);
    for (const Types types : kTypes) all_variants(40, 24, 56, types);
  }
}

TEST_F(MatmulCuda, BlocksOfColumnsLeaveTheirNeighboursAlone) {
  for (const Types types : kTypes) {
    for (const auto& block : {std::array<std::int64_t, 2>{0, 48}, {48, 16}, {5, 11}}) {
      const std::int64_t begin = block[0], width = block[1];
      Twin &a = random("a", {100, 80}, types.inputs), &b = random("b", {width, 96}, types.inputs);
      Twin& c = random("c", {100, 128}, types.result);
      compare(
          [&](Stream& stream, Side on) {
            matmul(stream, Matrix(on(a)).columns_of(begin, width), Transpose::no, on(b), Transpose::no,
                   Matrix(on(c)).columns_of(32, 96), Accumulate::overwrite);
          },
          {c}, fmt::format("columns {} + {} to columns 32 + 96", begin, width));
      clear();
      Twin &tall = random("a", {200, 80}, types.inputs), &other = random("b", {200, 30}, types.inputs);
      Twin& sum = random("c", {width, 40}, types.result);
      compare(
          [&](Stream& stream, Side on) {
            matmul(stream, Matrix(on(tall)).columns_of(begin, width), Transpose::yes, on(other), Transpose::no,
                   Matrix(on(sum)).columns_of(3, 30), Accumulate::add);
          },
          {sum}, fmt::format("transposed columns {} + {}", begin, width));
      clear();
    }
  }
}

TEST_F(MatmulCuda, EmptySumsWriteZerosOrAddNothing) {
  for (const Types types : kTypes) {
    for (const Accumulate accumulate : {Accumulate::overwrite, Accumulate::add}) {
      Twin &a = of({7, 0}, {}, types.inputs), &b = of({0, 9}, {}, types.inputs), &c = random("c", {7, 20}, types.result);
      compare(
          [&](Stream& stream, Side on) {
            matmul(stream, on(a), Transpose::no, on(b), Transpose::no, Matrix(on(c)).columns_of(4, 9), accumulate);
          },
          {{c, 0}}, "no inner extent");
      clear();
    }
  }
}

TEST_F(MatmulCuda, NothingToComputeIsFine) {
  Twin &a = of({0, 4}, {}), &b = random("b", {4, 3}), &c = of({0, 3}, {});
  compare([&](Stream& stream,
              Side on) { matmul(stream, on(a), Transpose::no, on(b), Transpose::no, on(c), Accumulate::overwrite); },
          {}, "no rows");
}

/// The step's own products at 370m: in_proj, x_proj, dt_proj, out_proj and the gradients of their weights.
TEST_F(MatmulCuda, RealShapes) {
  constexpr std::int64_t kTokens = 512, C = 1024, D = 2048, R = 64, N = 16;
  for (const Types types : kTypes) {
    for (const auto& [m, n, k] :
         {std::array<std::int64_t, 3>{kTokens, D, C}, {kTokens, R + 2 * N, D}, {kTokens, D, R}, {kTokens, C, D}}) {
      Twin &x = random("x", {m, k}, types.inputs), &w = random("w", {n, k}, types.inputs),
           &dy = random("dy", {m, n}, types.inputs);
      Twin &y = overwritten({m, n}, types.result), &dx = overwritten({m, k}, types.result), &dw = random("dw", {n, k});
      compare(
          [&](Stream& stream, Side on) {
            matmul(stream, on(x), Transpose::no, on(w), Transpose::yes, on(y), Accumulate::overwrite);
            matmul(stream, on(dy), Transpose::no, on(w), Transpose::no, on(dx), Accumulate::overwrite);
            matmul(stream, on(dy), Transpose::yes, on(x), Transpose::no, on(dw), Accumulate::add);
          },
          {y, dx, dw}, fmt::format("{} to {} of {}", k, n, m));
      clear();
    }
  }
}

}  // namespace
}  // namespace dm
