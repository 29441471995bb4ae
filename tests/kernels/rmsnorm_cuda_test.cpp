// RMSNorm on the GPU against the CPU: vector and strided widths, aligned or not, with and without update and copy, in place.
#include "kernels/rmsnorm.h"

#include <fmt/format.h>

#include "tests/kernels/cuda_oracle.h"

namespace dm {
namespace {

using oracle::Side;
using oracle::Twin;

struct Case {
  std::int64_t rows, C, offset;
};
constexpr Case kCases[] = {{1, 1, 0},      {3, 24, 0},     {5, 37, 0},    {4, 24, 1},      {700, 768, 0},
                           {300, 1024, 0}, {300, 1024, 4}, {65, 2560, 0}, {2500, 1024, 0}, {9, 5120, 0},
                           {9, 5128, 0},   {7, 8200, 0},   {5, 8200, 1},  {5000, 16, 0}};

std::string name_of(const Case& at, DType dtype) {
  return fmt::format("{} rows of {}, offset {}, {}", at.rows, at.C, at.offset, name_of(dtype));
}

class RmsNormCuda : public oracle::CudaTest {};

TEST_F(RmsNormCuda, Forward) {
  for (const DType dtype : oracle::kComputeTypes) {
    for (const DType update_dtype : {DType::f32, dtype}) {
      for (const Case& at : kCases) {
        set_offset(at.offset);
        const Shape shape{at.rows, at.C};
        Twin &residual = random("residual", shape), &update = random("update", shape, update_dtype);
        Twin& weight = random("weight", {at.C}, DType::f32, 0.5f, 1.0f);
        Twin &sum = overwritten(shape), &out = overwritten(shape, dtype), &rstd = overwritten({at.rows});
        compare(
            [&](Stream& stream, Side on) {
              add_rmsnorm_forward(stream, on(residual), on(update), Tensor(), on(weight), on(sum), on(out), on(rstd));
            },
            {sum, out, rstd}, name_of(at, dtype));
        clear();
      }
    }
  }
}

TEST_F(RmsNormCuda, MoreOfTheUpdateAndOfItsCotangent) {
  for (const DType dtype : oracle::kComputeTypes) {
    for (const std::int64_t count : {1, 3}) {
      for (const Case& at : kCases) {
        set_offset(at.offset);
        const Shape shape{at.rows, at.C};
        Twin &residual = random("residual", shape), &update = random("update", shape, dtype);
        Twin& more = random("more", {count, at.rows, at.C}, dtype);
        Twin& weight = random("weight", {at.C}, DType::f32, 0.1f, 1.0f);
        Twin &sum = overwritten(shape), &out = overwritten(shape, dtype), &rstd = overwritten({at.rows});
        compare(
            [&](Stream& stream, Side on) {
              add_rmsnorm_forward(stream, on(residual), on(update), on(more), on(weight), on(sum), on(out), on(rstd));
            },
            {sum, out, rstd}, name_of(at, dtype));
        clear();
        Twin &dout = random("dout", shape, dtype), &x = random("x", shape, dtype);
        Twin& terms = random("more", {count, at.rows, at.C}, dtype);
        Twin& w = random("weight", {at.C}, DType::f32, 0.1f, 1.0f);
        Twin& scale = random("rstd", {at.rows}, DType::f32, 0.1f, 1.0f);
        Twin &dresidual = random("dresidual", shape), &dweight = random("dweight", {at.C});
        compare(
            [&](Stream& stream, Side on) {
              rmsnorm_backward(stream, on(dout), on(terms), on(x), on(scale), on(w), on(dresidual), on(dout), on(dweight));
            },
            {dresidual, dout, dweight}, name_of(at, dtype));
        clear();
      }
    }
  }
}

TEST_F(RmsNormCuda, InPlaceAndWithoutUpdate) {
  for (const DType dtype : oracle::kComputeTypes) {
    for (const Case& at : kCases) {
      set_offset(at.offset);
      const Shape shape{at.rows, at.C};
      for (const bool in_place : {true, false}) {
        for (const bool with_update : {true, false}) {
          Twin &residual = random("residual", shape), &weight = random("weight", {at.C}), &rstd = overwritten({at.rows});
          Twin& out = overwritten(shape, dtype);
          Twin* update = with_update ? &random("update", shape, dtype) : nullptr;
          Twin& sum = in_place ? residual : overwritten(shape);
          compare(
              [&](Stream& stream, Side on) {
                add_rmsnorm_forward(stream, on(residual), on(update), Tensor(), on(weight), on(sum), on(out), on(rstd));
              },
              {sum, out, rstd}, name_of(at, dtype));
          clear();
        }
      }
    }
  }
}

TEST_F(RmsNormCuda, Backward) {
  for (const DType dtype : oracle::kComputeTypes) {
    for (const bool with_copy : {true, false}) {
      for (const Case& at : kCases) {
        set_offset(at.offset);
        const Shape shape{at.rows, at.C};
        Twin &dout = random("dout", shape, dtype), &x = random("x", shape, dtype);
        Twin& weight = random("weight", {at.C}, DType::f32, 0.1f, 1.0f);
        Twin& rstd = random("rstd", {at.rows}, DType::f32, 0.1f, 1.0f);
        Twin &dresidual = random("dresidual", shape), &dweight = random("dweight", {at.C});
        Twin& dupdate = overwritten(shape, dtype);
        compare(
            [&](Stream& stream, Side on) {
              rmsnorm_backward(stream, on(dout), Tensor(), on(x), on(rstd), on(weight), on(dresidual),
                               with_copy ? on(dupdate) : Tensor(), on(dweight));
            },
            {dresidual, dupdate, dweight}, name_of(at, dtype));
        clear();
      }
    }
  }
}

TEST_F(RmsNormCuda, BackwardWritesOverWhatItRead) {
  for (const DType dtype : oracle::kComputeTypes) {
    for (const bool over_x : {true, false}) {
      for (const Case& at : kCases) {
        set_offset(at.offset);
        const Shape shape{at.rows, at.C};
        Twin &dout = random("dout", shape, dtype), &x = random("x", shape, dtype), &dresidual = random("dresidual", shape);
        Twin &weight = random("weight", {at.C}, DType::f32, 0.1f, 1.0f), &dweight = random("dweight", {at.C});
        Twin &rstd = random("rstd", {at.rows}, DType::f32, 0.1f, 1.0f), &dupdate = over_x ? x : dout;
        compare(
            [&](Stream& stream, Side on) {
              rmsnorm_backward(stream, on(dout), Tensor(), on(x), on(rstd), on(weight), on(dresidual), on(dupdate),
                               on(dweight));
            },
            {dresidual, dupdate, dweight}, name_of(at, dtype));
        clear();
      }
    }
  }
}

TEST_F(RmsNormCuda, AWeightOfZeroDividesNothing) {
  for (const DType dtype : oracle::kComputeTypes) {
    for (const Case& at : kCases) {
      set_offset(at.offset);
      const Shape shape{at.rows, at.C};
      std::vector<float> weights(static_cast<std::size_t>(at.C)), values(static_cast<std::size_t>(shape.numel()));
      for (std::size_t c = 0; c < weights.size(); ++c) weights[c] = c % 3 == 0 ? 0.0f : c % 3 == 1 ? 1e-40f : -0.5f;
      for (std::size_t i = 0; i < values.size(); ++i) values[i] = weights[i % weights.size()];
      Twin &dout = random("dout", shape, dtype), &x = of(shape, values, dtype), &weight = of({at.C}, weights);
      Twin& rstd = random("rstd", {at.rows}, DType::f32, 0.1f, 1.0f);
      Twin &dresidual = random("dresidual", shape), &dweight = random("dweight", {at.C});
      compare(
          [&](Stream& stream, Side on) {
            rmsnorm_backward(stream, on(dout), Tensor(), on(x), on(rstd), on(weight), on(dresidual), Tensor(), on(dweight));
          },
          {dresidual, dweight}, name_of(at, dtype));
      clear();
    }
  }
}

}  // namespace
}  // namespace dm
