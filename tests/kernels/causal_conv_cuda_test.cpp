// The causal convolution on the GPU against the CPU: fast and general kernels, tiles of time and their edges, history.
#include "kernels/causal_conv.h"

#include <cmath>

#include <fmt/format.h>

#include "tests/kernels/cuda_oracle.h"

namespace dm {
namespace {

using oracle::Side;
using oracle::Twin;

struct Case {
  std::int64_t B, T, D, W, offset;
};
constexpr Case kCases[] = {{1, 1, 4, 4, 0},      {2, 3, 24, 4, 0},    {2, 64, 24, 4, 0},    {3, 65, 24, 4, 0},
                           {2, 67, 37, 4, 0},    {1, 130, 24, 4, 1},  {2, 100, 24, 4, 4},   {2, 40, 16, 2, 0},
                           {2, 40, 16, 8, 0},    {1, 33, 5, 3, 1},    {1, 2048, 516, 4, 0}, {2, 513, 1536, 4, 0},
                           {1, 300, 2048, 4, 0}, {1, 50, 8200, 4, 0}, {300, 2, 8, 4, 0}};

std::string name_of(const Case& at, DType dtype) {
  return fmt::format("B {} T {} D {} W {}, offset {}, {}", at.B, at.T, at.D, at.W, at.offset, name_of(dtype));
}

class CausalConvCuda : public oracle::CudaTest {};

TEST_F(CausalConvCuda, Forward) {
  for (const DType dtype : oracle::kComputeTypes) {
    for (const Case& at : kCases) {
      set_offset(at.offset);
      const Shape shape{at.B, at.T, at.D};
      Twin &x = random("x", shape, dtype), &weight = random("weight", {at.D, at.W}), &bias = random("bias", {at.D});
      Twin& out = overwritten(shape, dtype);
      compare(
          [&](Stream& stream, Side on) { causal_conv_silu_forward(stream, on(x), on(weight), on(bias), Tensor(), on(out)); },
          {out}, name_of(at, dtype));
      clear();
    }
  }
}

TEST_F(CausalConvCuda, ForwardWithHistory) {
  for (const DType dtype : oracle::kComputeTypes) {
    for (const Case& at : kCases) {
      for (const std::int64_t tokens : {std::int64_t{1}, std::int64_t{2}, at.T}) {
        set_offset(at.offset);
        const Shape shape{at.B, tokens, at.D};
        Twin &x = random("x", shape, dtype), &weight = random("weight", {at.D, at.W}), &bias = random("bias", {at.D});
        Twin &history = random("history", {at.B, at.W - 1, at.D}), &out = overwritten(shape, dtype);
        compare([&](Stream& stream,
                    Side on) { causal_conv_silu_forward(stream, on(x), on(weight), on(bias), on(history), on(out)); },
                {out, {history, 0}}, name_of(at, dtype));
        clear();
      }
    }
  }
}

TEST_F(CausalConvCuda, Backward) {
  for (const DType dtype : oracle::kComputeTypes) {
    for (const Case& at : kCases) {
      set_offset(at.offset);
      const Shape shape{at.B, at.T, at.D};
      Twin &dout = random("dout", shape, dtype), &x = random("x", shape, dtype);
      Twin &weight = random("weight", {at.D, at.W}), &bias = random("bias", {at.D}), &dx = overwritten(shape, dtype);
      Twin &dweight = random("dweight", {at.D, at.W}), &dbias = random("dbias", {at.D});
      compare(
          [&](Stream& stream, Side on) {
            causal_conv_silu_backward(stream, on(dout), {}, on(x), on(weight), on(bias), on(dx), on(dweight), on(dbias));
          },
          {dx, dweight, dbias}, name_of(at, dtype));
      clear();
    }
  }
}

TEST_F(CausalConvCuda, BackwardOfAProjectedOutput) {
  // Segments, tiles and sequences that end anywhere; K that the fused kernel knows, that it takes, and others
  constexpr std::int64_t kAny[][4] = {{1, 1, 4, 16},     {2, 3, 24, 48},     {3, 65, 40, 80},   {2, 131, 136, 96},
                                      {1, 700, 40, 160}, {1, 2048, 520, 96}, {2, 300, 8, 20},   {1, 70, 24, 400},
                                      {1, 50, 37, 48},   {1, 513, 1536, 80}, {9, 258, 128, 64}, {1, 129, 2048, 96},
                                      {1, 90, 72, 128},  {2, 45, 16, 192},   {1, 33, 264, 256}};
  for (const DType dtype : oracle::kComputeTypes) {
    for (const auto& [B, T, D, K] : kAny) {
      for (const std::int64_t offset : {0, 4}) {
        set_offset(offset);
        const Shape shape{B, T, D};
        const float deviation = K > 0 ? 1 / std::sqrt(static_cast<float>(K)) : 1;
        Twin &dout = random("dout", shape, dtype), &x = random("x", {B, T, 2 * D}, dtype);
        Twin &dy = random("dy", {B, T, K}, dtype), &projection = random("projection", {K, D}, dtype, deviation);
        Twin &weight = random("weight", {D, 4}), &bias = random("bias", {D}), &dx = overwritten({B, T, 2 * D}, dtype);
        Twin &dweight = random("dweight", {D, 4}), &dbias = random("dbias", {D});
        const auto right = [D = D](const Tensor& whole) { return Matrix(whole).columns_of(D, D); };
        constexpr double kUndefined = 10;
        const double sums = dtype == DType::bf16 ? 5e-3 : oracle::kFloat32Bound;  // where the product is rounded first
        compare(
            [&](Stream& stream, Side on) {
              causal_conv_silu_backward(stream, on(dout), {on(dy), on(projection)}, right(on(x)), on(weight), on(bias),
                                        right(on(dx)), on(dweight), on(dbias));
            },
            {dx, {dweight, sums}, {dbias, sums}, {dout, kUndefined}},
            fmt::format("B {} T {} D {} K {}, offset {}, {}", B, T, D, K, offset, name_of(dtype)));
        clear();
      }
    }
  }
}

TEST_F(CausalConvCuda, ColumnsOfSomethingWider) {
  for (const DType dtype : oracle::kComputeTypes) {
    for (const auto& [D, W] : {std::pair<std::int64_t, std::int64_t>{24, 4}, {37, 4}, {16, 3}}) {
      const Shape shape{2, 70, D}, wide{2, 70, 2 * D};
      Twin &dout = random("dout", shape, dtype), &x = random("x", wide, dtype), &out = overwritten(shape, dtype);
      Twin &weight = random("weight", {D, W}), &bias = random("bias", {D}), &dx = random("dx", wide, dtype);
      Twin &dweight = random("dweight", {D, W}), &dbias = random("dbias", {D});
      const auto right = [D = D](const Tensor& whole) { return Matrix(whole).columns_of(D, D); };
      compare(
          [&](Stream& stream, Side on) {
            causal_conv_silu_forward(stream, right(on(x)), on(weight), on(bias), Tensor(), on(out));
            causal_conv_silu_backward(stream, on(dout), {}, right(on(x)), on(weight), on(bias), right(on(dx)), on(dweight),
                                      on(dbias));
          },
          {out, dx, dweight, dbias}, fmt::format("D {} W {}, {}", D, W, name_of(dtype)));
      clear();
    }
  }
}

}  // namespace
}  // namespace dm
