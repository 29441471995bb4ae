// AdamW on the GPU: eight parameters a thread in 16-byte accesses, 28 to 30 bytes a parameter, bound by memory.
#include "kernels/adamw.h"

#include "kernels/cuda/common.cuh"

namespace dm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kResident = 3;  // blocks a multiprocessor: 128 bytes a thread in flight, which 80 registers hold

/// The numbers of one update. Every rounding is written out, so that an element's bits do not depend on the path it takes.
struct Rule {
  float scale, correct1, correct2, beta1, beta2, rest1, rest2, lr, epsilon, decay;

  __device__ Rule(const AdamWSettings& settings, const float* control)
      : scale(control[0]),
        correct1(control[1]),
        correct2(control[2]),
        beta1(settings.beta1),
        beta2(settings.beta2),
        rest1(1.0f - settings.beta1),
        rest2(1.0f - settings.beta2),
        lr(settings.lr),
        epsilon(settings.epsilon),
        decay(settings.weight_decay) {}

  __device__ void operator()(float gradient, float& m, float& v, float& w) const {
    const float g = __fmul_rn(scale, gradient);
    m = __fmaf_rn(beta1, m, __fmul_rn(rest1, g));
    v = __fmaf_rn(beta2, v, __fmul_rn(rest2, __fmul_rn(g, g)));
    const float size = __fadd_rn(__fsqrt_rn(__fmul_rn(v, correct2)), epsilon);
    const float step = __fdiv_rn(__fmul_rn(m, correct1), size);
    w = __fmaf_rn(-lr, __fmaf_rn(decay, w, step), w);
  }
};

/// `value` may be `master`: an element is written by the thread that read it.
template <class Value>
__global__ void __launch_bounds__(kThreads, kResident)
    update(AdamWSettings settings, const float* control, std::int64_t n, std::int64_t head, const float* gradient,
           float* first_moment, float* second_moment, float* master, Value* value) {
  if (control[0] == 0.0f) return;
  const Rule rule(settings, control);
  for_each_eight(
      n, head,
      [&](std::int64_t i) {
        float g[kVector], m[kVector], v[kVector], w[kVector];
        load8(gradient + i, g);
        load8(first_moment + i, m);
        load8(second_moment + i, v);
        load8(master + i, w);
#pragma unroll
        for (int k = 0; k < kVector; ++k) rule(g[k], m[k], v[k], w[k]);
        store8(first_moment + i, m);
        store8(second_moment + i, v);
        store8(master + i, w);
        store8(value + i, w);
      },
      [&](std::int64_t i) {
        float m = first_moment[i], v = second_moment[i], w = master[i];
        rule(gradient[i], m, v, w);
        first_moment[i] = m;
        second_moment[i] = v;
        master[i] = w;
        value[i] = from_float<Value>(w);
      });
}

/// One thread.
__global__ void __launch_bounds__(32) decide(const float* loss_sum, const float* norm_squared, float clip, float beta1,
                                             float beta2, std::int32_t* updates, float* control) {
  const double squared = static_cast<double>(*norm_squared), limit = static_cast<double>(clip);
  if (!isfinite(*loss_sum) || !isfinite(squared)) {
    control[0] = 0.0f;
    return;
  }
  const double norm = sqrt(squared), count = ++*updates;
  control[0] = limit > 0 && norm > limit ? static_cast<float>(limit / norm) : 1.0f;
  control[1] = static_cast<float>(1.0 / (1.0 - pow(static_cast<double>(beta1), count)));
  control[2] = static_cast<float>(1.0 / (1.0 - pow(static_cast<double>(beta2), count)));
}

}  // namespace

void step_control(Stream& stream, const Tensor& loss_sum, const Tensor& norm_squared, float clip, float beta1, float beta2,
                  const Tensor& updates, const Tensor& control) {
  decide<<<1, 1, 0, cuda::native(stream).stream>>>(loss_sum.as<float>(), norm_squared.as<float>(), clip, beta1, beta2,
                                                   updates.as<std::int32_t>(), control.as<float>());
  CUDA_CHECK(cudaGetLastError());
}

void adamw(Stream& stream, const AdamWSettings& settings, const Tensor& control, const Tensor& gradient,
           const Tensor& first_moment, const Tensor& second_moment, const Tensor& master, const Tensor& value) {
  const NativeStream& native = cuda::native(stream);
  const std::int64_t n = gradient.numel();
  if (n == 0) return;
  with_compute_type(value.dtype(), [&](auto element) {
    using Value = decltype(element);
    const float* g = gradient.as<float>();
    float *m = first_moment.as<float>(), *v = second_moment.as<float>(), *w = master.as<float>();
    // A turn a thread: blocks that come and go load while others store, which turns of one thread do not.
    update<Value><<<ceil_div(n, kThreads * kVector), kThreads, 0, native.stream>>>(
        settings, control.as<float>(), n, unaligned_head(n, g, m, v, w, pointer<Value>(value)), g, m, v, w,
        pointer<Value>(value));
    CUDA_CHECK(cudaGetLastError());
  });
}

}  // namespace dm::cuda
