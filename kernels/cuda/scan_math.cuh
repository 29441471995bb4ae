// Arithmetic of the selective scan: products of tensor cores, pieces of numbers for them, fast functions.
#pragma once

#include "kernels/cuda/scan_common.cuh"

namespace dm::cuda::scan {

/// What makes up for the 13 bits that a product of tensor cores drops of both its factors, 3.5e-4 of each on average.
inline constexpr float kDropped = 1.0f + 2 * 3.522e-4f;

/// The upper 11 bits of x: a tf32 number; x less it is one too, but for bits under 2^-21 of x.
__device__ inline float upper_piece(float x) {
  return __uint_as_float(__float_as_uint(x) & 0xffffe000u);
}
/// The nearest tf32 number.
__device__ inline float nearest_piece(float x) {
  return __uint_as_float((__float_as_uint(x) + 0x1000u) & 0xffffe000u);
}

/// d = a b for a column pair (rows pair and pair + 8 of term quad) and a row (term quad of column pair).
__device__ inline void product_k4(float (&d)[4], float a0, float a1, float b) {
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%7,%7,%7};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(b)), "f"(0.0f));
}
/// d = c + a b of pieces: rows pair and pair + 8 of term quad, column pair.
__device__ inline void product_k4(float (&d)[4], const float (&c)[4], float a0, float a1, float b) {
  asm("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(b)), "f"(c[0]), "f"(c[1]), "f"(c[2]),
        "f"(c[3]));
}
/// d += a b for a of (row, term) (pair, quad), (pair + 8, quad), (pair, quad + 4), (pair + 8, quad + 4), b of (term, column)
/// (quad, pair), (quad + 4, pair).
__device__ inline void add_product_k8(float (&d)[4], const float (&a)[4], float b0, float b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
/// The same of both pieces of a, with b cut into its own: 2^-20.
__device__ inline void add_exact_product_k8(float (&d)[4], const float (&a)[4], const float (&b_upper)[2],
                                            const float (&b_lower)[2]) {
  float upper[4], lower[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) upper[i] = upper_piece(a[i]), lower[i] = a[i] - upper[i];
  add_product_k8(d, lower, b_upper[0], b_upper[1]);
  add_product_k8(d, upper, b_lower[0], b_lower[1]);
  add_product_k8(d, upper, b_upper[0], b_upper[1]);
}

/// 2^(a b) for -126 <= a b <= 0 by multiplications and additions alone, where the unit of exponentials is what others wait
/// for. Relative error below 3e-7.
__device__ inline float exp2_by_products(float a, float b) {
  const float shifted = fmaf(a, b, kToWhole), rest = fmaf(a, b, kToWhole - shifted);
  float p = 0.00133813025f;
  p = p * rest + 0.00966636852f;
  p = p * rest + 0.0555038101f;
  p = p * rest + 0.24022349f;
  p = p * rest + 0.693147181f;
  p = p * rest + 1.0f;
  return __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
}

/// log1p(e) / e, relative error below 4e-7.
__device__ inline float log1p_ratio(float e) {
  float p = -0.00853920914f;
  p = p * e + 0.044089634f;
  p = p * e - 0.107681714f;
  p = p * e + 0.177452415f;
  p = p * e - 0.244954631f;
  p = p * e + 0.332754791f;
  p = p * e - 0.499974042f;
  return p * e + 0.999999821f;
}
/// The same, relative error below 6e-5: a hundredth of what a bfloat16 argument's rounding does to softplus.
__device__ inline float coarse_log1p_ratio(float e) {
  float p = 0.0413473017f;
  p = p * e - 0.157427206f;
  p = p * e + 0.306300929f;
  p = p * e - 0.496977805f;
  return p * e + 0.999943278f;
}
/// log1p(exp(x)) = max(x, 0) + log1p(e) with e = exp(−|x|), for x made of a T; relative error below 4e-7, of bfloat16 6e-5.
template <class T>
__device__ float softplus(float x) {
  const float e = exp2_fast(-kLog2e * fabsf(x));
  return fmaxf(x, 0.0f) + e * (std::is_same_v<T, float> ? log1p_ratio(e) : coarse_log1p_ratio(e));
}
/// The same of x, e and 1 + e for backward: of bfloat16 inputs by a logarithm, absolute error below 3e-7.
template <class T>
__device__ float backward_softplus(float x, float e, float above) {
  return fmaxf(x, 0.0f) + (std::is_same_v<T, float> ? e * log1p_ratio(e) : kLn2 * log2_fast(above));
}
template <class T>
__device__ float backward_softplus(float x) {
  const float e = exp2_fast(-kLog2e * fabsf(x));
  return backward_softplus<T>(x, e, 1.0f + e);
}
/// 1 / (1 + exp(−x)) of two numbers with one reciprocal. Below −43 it stays at e^-43.
__device__ inline void sigmoid_pair(const float (&x)[2], float (&sigmoid)[2]) {
  const float a = 1.0f + exp2_fast(fminf(-kLog2e * x[0], 62.0f)), b = 1.0f + exp2_fast(fminf(-kLog2e * x[1], 62.0f));
  const float both = reciprocal(a * b);
  sigmoid[0] = both * b, sigmoid[1] = both * a;
}
/// z0 · sigmoid(z0) and z1 · sigmoid(z1).
__device__ inline void silu_pair(float (&z)[2]) {
  float sigmoid[2];
  sigmoid_pair(z, sigmoid);
  z[0] *= sigmoid[0], z[1] *= sigmoid[1];
}

}  // namespace dm::cuda::scan
