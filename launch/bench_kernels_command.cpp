// `densemamba bench-kernels`: every op of a training step at its own shapes, as a share of the device's measured ceilings.
#include <algorithm>
#include <iostream>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "kernels/adamw.h"
#include "kernels/causal_conv.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/matmul.h"
#include "kernels/rmsnorm.h"
#include "kernels/selective_scan.h"
#include "launch/build_info.h"
#include "launch/commands.h"
#include "launch/device_choice.h"
#include "launch/kernel_bench.h"
#include "model/config.h"
#include "model/linear.h"
#include "model/vocabulary.h"
#include "runtime/options.h"

namespace dm {
namespace {

struct BenchOptions {
  std::string device = "auto", dtype = "auto", only;
  std::int64_t batch = 8, sequence = 2048, loss_chunk = kLossChunk, parameters = 64 << 20, repeats = 20;
  double seconds = 0;
  bool candidates = false, json = false;
  ModelConfig model{.d_model = 1024, .vocabulary = 32000};
};

/// Runs and prints one row after the other. Letters as in model/config.h; `tokens_` is B · T.
class StepBench {
 public:
  StepBench(const BenchOptions& options, Device device, DType compute)
      : options_(options),
        device_(device),
        compute_(compute),
        bench_(device, compute, options.repeats, options.seconds),
        B_(options.batch),
        T_(options.sequence),
        tokens_(B_ * T_),
        C_(options.model.d_model),
        D_(options.model.d_inner()),
        N_(options.model.d_state),
        R_(options.model.dt_rank),
        small_(R_ + 2 * N_) {}

  void run() {
    print_head();
    products();
    norms();
    conversion();
    convolution();
    for (std::int64_t sources = 0; sources <= options_.model.dense_depth; ++sources) scans(sources);
    loss();
    embedding();
    optimizer();
  }

 private:
  using Call = KernelBench::Call;

  /// Bytes of `elements` numbers of a type.
  static double bytes(std::int64_t elements, DType dtype) { return static_cast<double>(elements * size_of(dtype)); }
  double activations(std::int64_t elements) const { return bytes(elements, compute_); }
  static double floats(std::int64_t elements) { return bytes(elements, DType::f32); }

  void print_head();
  bool wanted(std::string_view name) const;
  void row(const std::string& name, const KernelWork& work, const KernelBench::Prepare& prepare, bool is_product = false);
  std::vector<KernelTiming> time_candidates(const KernelTiming& chosen, const KernelBench::Prepare& prepare);
  void product(const std::string& name, std::int64_t rows, std::int64_t inputs, std::int64_t outputs, DType y, DType dx,
               std::optional<Accumulate> dx_is);
  void products();
  void norms();
  void conversion();
  void convolution();
  void scans(std::int64_t sources);
  void loss();
  void embedding();
  void optimizer();

  /// One layer's part of a scan, random.
  ScanRecurrence recurrence(KernelInputs& inputs) const {
    const ScanStates saved = scan_states(device_.kind, compute_, B_, T_, D_, N_);
    return {.u = inputs.random({B_, T_, D_}, compute_),
            .dt = inputs.random({B_, T_, D_}, compute_),
            .dt_bias = inputs.filled({D_}, -4.6f),  // softplus is 0.01
            .A_log = inputs.random({D_, N_}, DType::f32),
            .dbc = inputs.random({B_, T_, small_}, DType::f32),
            .initial = {},
            .chunk_states = inputs.random(saved.shape, saved.dtype)};
  }

  const BenchOptions& options_;
  Device device_;
  DType compute_;
  KernelBench bench_;
  std::int64_t B_, T_, tokens_, C_, D_, N_, R_, small_;
};

void StepBench::print_head() {
  const KernelCeilings& c = bench_.ceilings();
  const std::string device = device_.kind == DeviceKind::cuda ? cuda::describe_device(device_.index) : "cpu";
  if (options_.json) {
    const nlohmann::json line = {{"device", device},
                                 {"build", build_description()},
                                 {"dtype", name_of(compute_)},
                                 {"batch", B_},
                                 {"sequence", T_},
                                 {"d_model", C_},
                                 {"vocabulary", options_.model.vocabulary},
                                 {"copy_bytes_per_second", c.bytes},
                                 {"product_flops_per_second", c.flops},
                                 {"exponentials_per_second", c.exponentials}};
    std::cout << line.dump() << std::endl;
    return;
  }
  std::cout
      << fmt::format("{}\n{}\n{}, batch {}, sequence {}, d_model {}, vocabulary {}\n", device, build_description(),
                     name_of(compute_), B_, T_, C_, options_.model.vocabulary)
      << fmt::format(
             "ceilings of this run: copy {:.0f} GB/s (read + written), product {:.1f} TFLOP/s, exponentials {:.3f} T/s\n\n",
             c.bytes * 1e-9, c.flops * 1e-12, c.exponentials * 1e-12)
      << fmt::format("{:<28} {:>9} {:>7} {:>9} {:>9} {:>9} {:>7}  {}\n", "op", "ms", "spread", "min", "GB/s", "TFLOP/s",
                     "share", "of");
}

/// True for the ops that --only names.
bool StepBench::wanted(std::string_view name) const {
  for (std::string_view rest = options_.only;;) {
    const std::size_t comma = rest.find(',');
    if (name.find(rest.substr(0, comma)) != std::string_view::npos) return true;
    if (comma == std::string_view::npos) return false;
    rest.remove_prefix(comma + 1);
  }
}

/// A product with each of cuBLASLt's algorithms.
std::vector<KernelTiming> StepBench::time_candidates(const KernelTiming& chosen, const KernelBench::Prepare& prepare) {
  std::vector<KernelTiming> candidates;
  for (int index = 0; index < kMatmulCandidates; ++index) {
    const auto with_candidate = [&](KernelInputs& inputs) -> Call {
      return [index, call = prepare(inputs)](Stream& stream) {
        use_matmul_candidate(stream, index);
        call(stream);
        use_matmul_candidate(stream, kMatmulRule);
      };
    };
    candidates.push_back(bench_.time(chosen.name, chosen.work, with_candidate));
  }
  return candidates;
}

/// ", 97.1% of the fastest algorithm", or nothing without candidates.
std::string fastest_of(const std::vector<KernelTiming>& candidates, const KernelTiming& chosen) {
  if (candidates.empty()) return {};
  double fastest = chosen.ms;
  for (const KernelTiming& candidate : candidates) fastest = std::min(fastest, candidate.ms);
  return fmt::format(", {:.1f}% of the fastest algorithm", 100 * fastest / chosen.ms);
}

void StepBench::row(const std::string& name, const KernelWork& work, const KernelBench::Prepare& prepare, bool is_product) {
  if (!wanted(name)) return;
  const KernelTiming t = bench_.time(name, work, prepare);
  const std::vector<KernelTiming> candidates =
      is_product && options_.candidates ? time_candidates(t, prepare) : std::vector<KernelTiming>();
  if (options_.json) {
    nlohmann::json line = {{"op", t.name},
                           {"ms", t.ms},
                           {"ms_min", t.ms_min},
                           {"spread", t.spread},
                           {"bytes", work.bytes},
                           {"flops", work.flops},
                           {"exponentials", work.exponentials},
                           {"share", t.share},
                           {"bound", t.bound}};
    if (t.joules > 0) line["joules"] = t.joules, line["clock_mhz"] = t.clock_mhz;
    for (const KernelTiming& candidate : candidates) line["candidates_ms"].push_back(candidate.ms);
    std::cout << line.dump() << std::endl;
    return;
  }
  std::cout << fmt::format("{:<28} {:>9.4f} {:>6.1f}% {:>9.4f} {:>9.0f} {:>9.1f} {:>6.1f}%  {}", t.name, t.ms,
                           100 * t.spread, t.ms_min, work.bytes / t.ms * 1e-6, work.flops / t.ms * 1e-9, 100 * t.share,
                           t.bound)
            << (t.joules > 0 ? fmt::format(", {:.0f} W at {:.0f} MHz", 1e3 * t.joules / t.ms, t.clock_mhz) : "")
            << fastest_of(candidates, t) << std::endl;
}

/// y = x·Wᵀ with W [outputs, inputs], and its two gradients, or without `dx_is` the weight's alone. That one is f32 and
/// written, as by a step's first micro-batch.
void StepBench::product(const std::string& name, std::int64_t rows, std::int64_t inputs, std::int64_t outputs, DType y,
                        DType dx, std::optional<Accumulate> dx_is) {
  const double flops = 2.0 * static_cast<double>(rows) * static_cast<double>(inputs) * static_cast<double>(outputs);
  const double x_bytes = activations(rows * inputs), w_bytes = activations(outputs * inputs),
               dy_bytes = activations(rows * outputs);
  row(
      name + " forward", {.bytes = x_bytes + w_bytes + bytes(rows * outputs, y), .flops = flops},
      [&](KernelInputs& in) -> Call {
        const Tensor x = in.random({rows, inputs}, compute_), w = in.random({outputs, inputs}, compute_),
                     to = in.random({rows, outputs}, y);
        return [=](Stream& stream) { linear_forward(stream, x, w, to); };
      },
      true);
  if (dx_is) {
    const double dx_bytes = bytes(rows * inputs, dx) * (*dx_is == Accumulate::add ? 2 : 1);
    row(
        name + " backward input", {.bytes = dy_bytes + w_bytes + dx_bytes, .flops = flops},
        [&](KernelInputs& in) -> Call {
          const Tensor dy = in.random({rows, outputs}, compute_), w = in.random({outputs, inputs}, compute_),
                       to = in.random({rows, inputs}, dx);
          return [=, is = *dx_is](Stream& stream) { linear_backward_input(stream, dy, w, to, is); };
        },
        true);
  }
  row(
      name + " backward weight", {.bytes = dy_bytes + x_bytes + floats(outputs * inputs), .flops = flops},
      [&](KernelInputs& in) -> Call {
        const Tensor dy = in.random({rows, outputs}, compute_), x = in.random({rows, inputs}, compute_);
        const Tensor dw = in.filled({outputs, inputs}, 0);
        return [=](Stream& stream) { linear_backward_weight(stream, dy, x, dw, Accumulate::overwrite); };
      },
      true);
}

void StepBench::products() {
  const std::int64_t G = options_.model.gate_rank, chunk = std::min(options_.loss_chunk, tokens_);
  product("in_proj half", tokens_, C_, D_, compute_, compute_, Accumulate::add);
  product("in_proj whole", tokens_, C_, 2 * D_, compute_, compute_, Accumulate::overwrite);
  product("x_proj", tokens_, D_, small_, DType::f32, compute_, std::nullopt);  // the convolution's backward has the rest
  product("dt_proj", tokens_, R_, D_, compute_, DType::f32, Accumulate::overwrite);
  product("out_proj", tokens_, D_, C_, compute_, compute_, Accumulate::overwrite);
  if (options_.model.dense_depth > 0) {
    product("gate fc1", tokens_, C_, G, compute_, compute_, Accumulate::add);
    product("gate fc2", tokens_, G, D_, compute_, DType::f32, Accumulate::overwrite);
  }
  product("head", chunk, C_, options_.model.padded_vocabulary(), compute_, compute_, Accumulate::overwrite);
}

void StepBench::norms() {
  const Shape shape{tokens_, C_};
  const std::int64_t n = shape.numel();
  row("rmsnorm forward", {.bytes = 2 * floats(n) + 2 * activations(n)}, [&](KernelInputs& in) -> Call {
    const Tensor residual = in.random(shape, DType::f32), update = in.random(shape, compute_), weight = in.filled({C_}, 1);
    const Tensor sum = in.random(shape, DType::f32), out = in.random(shape, compute_), rstd = in.filled({tokens_}, 1);
    return [=](Stream& stream) { add_rmsnorm_forward(stream, residual, update, Tensor(), weight, sum, out, rstd); };
  });
  const bool copies = compute_ != DType::f32;
  row("rmsnorm backward", {.bytes = 2 * floats(n) + (copies ? 3 : 2) * activations(n)}, [&](KernelInputs& in) -> Call {
    const Tensor dout = in.random(shape, compute_), x = in.random(shape, compute_), rstd = in.filled({tokens_}, 1);
    const Tensor weight = in.filled({C_}, 1), dresidual = in.random(shape, DType::f32), dweight = in.filled({C_}, 0);
    const Tensor dupdate = copies ? in.random(shape, compute_) : Tensor();
    return [=](Stream& stream) { rmsnorm_backward(stream, dout, Tensor(), x, rstd, weight, dresidual, dupdate, dweight); };
  });
}

/// Of x_proj's output to an operand of products, and of its cotangent.
void StepBench::conversion() {
  if (compute_ == DType::f32) return;
  const std::int64_t n = tokens_ * small_;
  row("convert", {.bytes = floats(n) + activations(n)}, [&](KernelInputs& in) -> Call {
    const Tensor from = in.random({tokens_, small_}, DType::f32), to = in.random({tokens_, small_}, compute_);
    return [=](Stream& stream) { convert(stream, from, to); };
  });
}

void StepBench::convolution() {
  const Shape shape{B_, T_, D_};
  const std::int64_t W = options_.model.d_conv;
  row("conv forward", {.bytes = 2 * activations(shape.numel())}, [&](KernelInputs& in) -> Call {
    const Tensor x = in.random(shape, compute_), weight = in.random({D_, W}, DType::f32), bias = in.random({D_}, DType::f32);
    const Tensor out = in.random(shape, compute_);
    return [=](Stream& stream) { causal_conv_silu_forward(stream, x, weight, bias, {}, out); };
  });
  // x and its cotangent are the left half of in_proj's output and its cotangent; x_proj reads the convolution's output.
  const KernelWork with_projection{.bytes = 3 * activations(shape.numel()) + activations(small_ * (tokens_ + D_)),
                                   .flops = 2.0 * static_cast<double>(tokens_ * small_ * D_)};
  row("conv backward", with_projection, [&](KernelInputs& in) -> Call {
    const Shape wide{B_, T_, 2 * D_};
    const Tensor dout = in.random(shape, compute_), x = in.random(wide, compute_), dx = in.random(wide, compute_);
    const Tensor weight = in.random({D_, W}, DType::f32), bias = in.random({D_}, DType::f32);
    const Tensor dweight = in.filled({D_, W}, 0), dbias = in.filled({D_}, 0);
    const OutputProjection projection{in.random({B_, T_, small_}, compute_), in.random({small_, D_}, compute_)};
    return [=, D = D_](Stream& stream) {
      causal_conv_silu_backward(stream, dout, projection, Matrix(x).columns_of(0, D), weight, bias,
                                Matrix(dx).columns_of(0, D), dweight, dbias);
    };
  });
}

/// A layer that reads `sources` layers below and is read by as many above.
void StepBench::scans(std::int64_t sources) {
  const ScanStates saved = scan_states(device_.kind, compute_, B_, T_, D_, N_);
  const std::int64_t plane = tokens_ * D_;
  const double gate = sources > 0 ? 1 : 0, count = static_cast<double>(sources);
  const double states = bytes(saved.shape.numel(), saved.dtype), dbc = floats(tokens_ * small_), planes = activations(plane);
  const double decays = static_cast<double>(plane * N_) * (1 + count);
  const Shape shape{B_, T_, D_};

  const KernelWork forward{.bytes = (4 + gate + 2 * count) * planes + (1 + count) * dbc + states, .exponentials = decays};
  row(fmt::format("scan forward, {} sources", sources), forward, [&](KernelInputs& in) -> Call {
    const ScanRecurrence own = recurrence(in);
    std::vector<ScanRecurrence> below;
    for (std::int64_t i = 0; i < sources; ++i) below.push_back(recurrence(in));
    const Tensor gates = sources > 0 ? in.random(shape, compute_) : Tensor(), skip = in.filled({D_}, 1);
    const Tensor z = in.random(shape, compute_), out = in.random(shape, compute_);
    return [=](Stream& stream) {
      selective_scan_forward(
          stream, {.own = own, .sources = below, .gate = gates, .skip = skip, .z = z, .out = out, .final_state = {}});
    };
  });

  const KernelWork backward{.bytes = (7 + 3 * gate + 3 * count) * planes + (2 + 2 * count) * dbc + (1 + count) * states,
                            .exponentials = decays};
  row(fmt::format("scan backward, {} sources", sources), backward, [&](KernelInputs& in) -> Call {
    const ScanRecurrence own = recurrence(in);
    std::vector<ScanRecurrence> below;
    std::vector<ScanReader> above;
    for (std::int64_t i = 0; i < sources; ++i) {
      below.push_back(recurrence(in));
      above.push_back({.q = in.random(shape, compute_), .dbc = in.random({B_, T_, small_}, DType::f32)});
    }
    const auto if_dense = [&] { return sources > 0 ? in.random(shape, compute_) : Tensor(); };
    ScanBackwardArgs args{.own = own,
                          .sources = {},
                          .readers = {},
                          .gate = if_dense(),
                          .skip = in.filled({D_}, 1),
                          .z = in.random(shape, compute_),
                          .dout = in.random(shape, compute_),
                          .du = in.random(shape, compute_),
                          .ddt = in.random(shape, compute_),
                          .ddbc = in.random({B_, T_, small_}, compute_),
                          .dz = in.random(shape, compute_),
                          .dgate = if_dense(),
                          .q = if_dense(),
                          .out = in.random(shape, compute_),
                          .dA_log = in.filled({D_, N_}, 0),
                          .dskip = in.filled({D_}, 0),
                          .ddt_bias = in.filled({D_}, 0),
                          .scratch = in.filled({scan_backward_scratch(device_.kind, B_, T_, D_, N_, sources > 0)}, 0)};
    return [=](Stream& stream) mutable {
      args.sources = below;
      args.readers = above;
      selective_scan_backward(stream, args);
    };
  });
}

void StepBench::loss() {
  const std::int64_t rows = std::min(options_.loss_chunk, tokens_), V = options_.model.padded_vocabulary();
  const VocabularyShard shard{.first = 0, .valid = options_.model.vocabulary};
  row("cross-entropy stats", {.bytes = activations(rows * V), .exponentials = static_cast<double>(rows * V)},
      [&](KernelInputs& in) -> Call {
        const Tensor logits = in.random({rows, V}, compute_), targets = in.tokens({rows}, shard.valid);
        const Tensor stats = in.filled({rows, 3}, 0);
        return [=](Stream& stream) { cross_entropy_stats(stream, logits, targets, shard, stats); };
      });
  row("cross-entropy finish", {.bytes = 2 * activations(rows * V), .exponentials = static_cast<double>(rows * V)},
      [&](KernelInputs& in) -> Call {
        const Tensor logits = in.random({rows, V}, compute_), targets = in.tokens({rows}, shard.valid);
        const Tensor stats = in.filled({1, rows, 3}, 6), losses = in.filled({rows}, 0);
        return [=](Stream& stream) { cross_entropy_finish(stream, logits, targets, shard, stats, 1e-3f, losses); };
      });
}

void StepBench::embedding() {
  const std::int64_t V = options_.model.padded_vocabulary();
  row("embedding forward", {.bytes = (activations(C_) + floats(C_ + 1)) * static_cast<double>(tokens_)},
      [&](KernelInputs& in) -> Call {
        const Tensor tokens = in.tokens({tokens_}, options_.model.vocabulary), table = in.random({V, C_}, compute_);
        const Tensor out = in.random({tokens_, C_}, DType::f32);
        return [=](Stream& stream) { embedding_forward(stream, tokens, table, 0, out); };
      });
  const std::int64_t touched = std::min(tokens_, V);
  row("embedding backward", {.bytes = floats(tokens_ * C_) + 2 * floats(touched * C_)}, [&](KernelInputs& in) -> Call {
    const Tensor tokens = in.tokens({tokens_}, options_.model.vocabulary), dout = in.random({tokens_, C_}, DType::f32);
    const Tensor dtable = in.filled({V, C_}, 0);
    return [=](Stream& stream) { embedding_backward(stream, tokens, dout, 0, dtable); };
  });
}

void StepBench::optimizer() {
  const std::int64_t n = options_.parameters;
  const bool one_copy = compute_ == DType::f32;  // the value is the master
  row("adamw", {.bytes = 7 * floats(n) + (one_copy ? 0 : activations(n))}, [&](KernelInputs& in) -> Call {
    const Tensor control = in.filled({3}, 1), gradient = in.random({n}, DType::f32), first = in.random({n}, DType::f32);
    const Tensor second = in.filled({n}, 1), master = in.random({n}, DType::f32);
    const Tensor value = one_copy ? master : in.random({n}, compute_);
    return [=](Stream& stream) { adamw(stream, {.lr = 1e-4f}, control, gradient, first, second, master, value); };
  });
  row("sum of squares", {.bytes = floats(n)}, [&](KernelInputs& in) -> Call {
    const Tensor x = in.random({n}, DType::f32), out = in.filled({1}, 0);
    return [=](Stream& stream) { sum_of_squares(stream, x, out); };
  });
}

}  // namespace

int bench_kernels_command(int argc, char** argv) {
  BenchOptions options;
  OptionTable table("densemamba bench-kernels [--run.device cuda] [--batch 8] [--sequence 2048] [--d_model 1024]",
                    "Times every op of a training step as a share of what this device reaches in the same run.");
  table.section("run", "Where it runs.");
  table.add("run.device", options.device, "Where to compute.", {"auto", "cpu", "cuda"});
  table.add("dtype", options.dtype, "Activations and weights; auto is bf16 on GPUs, f32 on CPUs.", {"auto", "bf16", "f32"});
  table.add("batch", options.batch, "Sequences.", {.min = 1});
  table.add("sequence", options.sequence, "Tokens a sequence.", {.min = 1});
  table.add("d_model", options.model.d_model, "Width of the residual stream.", {.min = 1});
  table.add("vocabulary", options.model.vocabulary, "Tokens of the head.", {.min = 1});
  table.add("dense_depth", options.model.dense_depth, "Scans with up to so many sources and readers.", {.min = 0});
  table.add("loss_chunk", options.loss_chunk, "Tokens of the head and the loss.", {.min = 1});
  table.add("parameters", options.parameters, "Parameters of the optimizer's range.", {.min = 1});
  table.add("repeats", options.repeats, "Timed calls; the median is reported.", {.min = 1});
  table.add(
      "seconds", options.seconds,
      "On a GPU: time calls for so long without pause, at the clock it can hold, and count their energy. 0: calls apart.",
      {.min = 0});
  table.add("only", options.only, "Ops with one of these texts in their name, separated by commas.");
  table.add("candidates", options.candidates,
            "Time products with each of cuBLASLt's algorithms too, and compare with the fastest.");
  table.add("json", options.json, "One JSON line a row in place of the table.");
  if (table.parse(argc, argv, std::cout) != ParseOutcome::run) return 0;
  use_one_blas_thread();
  options.model.resolve();
  const Device device = device_kind(options.device) == DeviceKind::cuda ? Device::cuda(0) : Device::cpu();
  if (device.kind == DeviceKind::cpu && options.dtype == "bf16")
    fail("--dtype bf16 needs a GPU; the CPU computes in float32", ExitCode::usage);
  if (device.kind == DeviceKind::cpu && options.candidates)
    fail("--candidates are cuBLASLt's algorithms and need a GPU; leave it out", ExitCode::usage);
  const bool rounded = options.dtype == "auto" ? device.kind == DeviceKind::cuda : options.dtype == "bf16";
  StepBench(options, device, rounded ? DType::bf16 : DType::f32).run();
  return 0;
}

}  // namespace dm
