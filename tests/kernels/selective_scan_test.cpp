// The selective scan and its backward against a double oracle that is itself checked by finite differences.
#include "kernels/selective_scan.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <optional>

#include "tests/kernels/oracle.h"
#include "tests/kernels/selective_scan_oracle.h"

namespace dm {
namespace {

using oracle::Guarded;
using oracle::OracleGradients;
using oracle::OracleRecurrence;
using oracle::OracleScan;
using oracle::Overwritten;
using oracle::Random;
using oracle::ScanExtents;

constexpr double kBound = 2e-6;
/// For one sum over time a channel, whose terms cancel: with one channel the norm does not average that away.
constexpr double kSumBound = 1e-5;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// The tensors of one recurrence, with values of the size that training has: Δ about 0.05, A from −1 to −N.
struct Layer {
  Layer(const std::string& name, const ScanExtents& x, float dt_deviation = 1.0f)
      : u(name + ".u", {x.B, x.T, x.D}),
        dt(name + ".dt", {x.B, x.T, x.D}, dt_deviation),
        dt_bias(name + ".dt_bias", {x.D}, 0.5f, -3.0f),
        A_log(name + ".A_log", {x.D, x.N}, 0.2f),
        dbc(name + ".dbc", {x.B, x.T, x.R + 2 * x.N}),
        initial(name + ".initial", {x.B, x.D, x.N}),
        chunk_states({x.B, scan_chunks(x.T), x.D, x.N}) {
    for (std::int64_t i = 0; i < x.D * x.N; ++i) A_log[i] += std::log(static_cast<float>(1 + i % x.N));
  }

  ScanRecurrence recurrence(bool from_initial = false) {
    return {u.tensor(),           dt.tensor(),  dt_bias.tensor(),
            A_log.tensor(),       dbc.tensor(), from_initial ? initial.tensor() : Tensor(),
            chunk_states.tensor()};
  }
  OracleRecurrence in_double(bool from_initial = false) const {
    OracleRecurrence r{u.as_double(),     dt.as_double(),  dt_bias.as_double(),
                       A_log.as_double(), dbc.as_double(), initial.as_double()};
    if (!from_initial) std::fill(r.initial.begin(), r.initial.end(), 0.0);
    return r;
  }

  Random u, dt, dt_bias, A_log, dbc, initial;
  Overwritten chunk_states;
};

struct Reader {
  Reader(const std::string& name, const ScanExtents& x)
      : q(name + ".q", {x.B, x.T, x.D}), dbc(name + ".dbc", {x.B, x.T, x.R + 2 * x.N}) {}
  Random q, dbc;
};

/// All inputs of a forward and a backward.
struct Problem {
  Problem(ScanExtents x, int source_count, int reader_count, float dt_deviation = 1.0f)
      : x(x),
        own("own", x, dt_deviation),
        gate("gate", {x.B, x.T, x.D}),
        skip("skip", {x.D}),
        z("z", {x.B, x.T, x.D}),
        dout("dout", {x.B, x.T, x.D}) {
    for (int s = 0; s < source_count; ++s) sources.emplace_back("source" + std::to_string(s), x, dt_deviation);
    for (int k = 0; k < reader_count; ++k) readers.emplace_back("reader" + std::to_string(k), x);
  }

  OracleScan in_double(bool from_initial = false) const {
    OracleScan scan{
        x, own.in_double(from_initial), {}, {}, gate.as_double(), skip.as_double(), z.as_double(), dout.as_double()};
    for (const Layer& source : sources) scan.sources.push_back(source.in_double(from_initial));
    for (const Reader& reader : readers) scan.readers.push_back({reader.q.as_double(), reader.dbc.as_double()});
    return scan;
  }
  std::vector<ScanRecurrence> source_recurrences(bool from_initial = false) {
    std::vector<ScanRecurrence> all;
    for (Layer& source : sources) all.push_back(source.recurrence(from_initial));
    return all;
  }
  std::string name() const {
    return "B " + std::to_string(x.B) + " T " + std::to_string(x.T) + " D " + std::to_string(x.D) + " N " +
           std::to_string(x.N) + " sources " + std::to_string(sources.size()) + " readers " + std::to_string(readers.size());
  }

  ScanExtents x;
  Layer own;
  std::deque<Layer> sources;
  std::deque<Reader> readers;
  Random gate, skip, z, dout;
  std::optional<Guarded<float>> wide_z;

  /// Moves z to the right half of twice as many columns.
  void widen() {
    wide_z.emplace(Shape{x.B, x.T, 2 * x.D}, -5.0f);
    for (std::int64_t i = 0; i < x.B * x.T * x.D; ++i) (*wide_z)[i / x.D * 2 * x.D + x.D + i % x.D] = z[i];
  }
  Matrix z_matrix() { return wide_z ? Matrix(wide_z->tensor()).columns_of(x.D, x.D) : Matrix(z.tensor()); }
};

/// Runs the forward of `p` into `out`; `final_state` may be absent.
void run_forward(Problem& p, const Tensor& out, bool from_initial = false, const Tensor& final_state = {}) {
  Stream stream(Device::cpu());
  const std::vector<ScanRecurrence> sources = p.source_recurrences(from_initial);
  selective_scan_forward(stream, {.own = p.own.recurrence(from_initial),
                                  .sources = sources,
                                  .gate = sources.empty() ? Tensor() : p.gate.tensor(),
                                  .skip = p.skip.tensor(),
                                  .z = p.z_matrix(),
                                  .out = out,
                                  .final_state = final_state});
}

/// The chunk states that backward reads: a plain forward of every layer.
void save_states(Problem& p) {
  Stream stream(Device::cpu());
  Overwritten out({p.x.B, p.x.T, p.x.D});
  const auto save = [&](Layer& layer) {
    selective_scan_forward(stream, {.own = layer.recurrence(),
                                    .sources = {},
                                    .gate = {},
                                    .skip = p.skip.tensor(),
                                    .z = p.z.tensor(),
                                    .out = out.tensor(),
                                    .final_state = {}});
  };
  save(p.own);
  for (Layer& source : p.sources) save(source);
}

/// The outputs of a backward; the accumulated ones start from numbers, and so does all of ddbc, whose δ columns must stay.
struct Gradients {
  explicit Gradients(const ScanExtents& x, float scratch_value = kNan)
      : x(x),
        du({x.B, x.T, x.D}),
        ddt({x.B, x.T, x.D}),
        dz({x.B, x.T, x.D}),
        dgate({x.B, x.T, x.D}),
        q({x.B, x.T, x.D}),
        out({x.B, x.T, x.D}),
        ddbc("ddbc", {x.B, x.T, x.R + 2 * x.N}),
        dA_log("dA_log", {x.D, x.N}),
        dskip("dskip", {x.D}),
        ddt_bias("ddt_bias", {x.D}),
        scratch({scan_backward_scratch(DeviceKind::cpu, x.B, x.T, x.D, x.N, true)}, scratch_value) {}

  ScanExtents x;
  Overwritten du, ddt, dz, dgate, q, out;
  Random ddbc, dA_log, dskip, ddt_bias;
  Guarded<float> scratch;
};

/// Runs the backward of `p` (after save_states). `in_place`: dz is z, dgate is gate and out is dout; else `out` says whether
/// out is asked for.
void run_backward(Problem& p, Gradients& g, bool in_place = false, bool out = true) {
  Stream stream(Device::cpu());
  const std::vector<ScanRecurrence> sources = p.source_recurrences();
  std::vector<ScanReader> readers;
  for (Reader& reader : p.readers) readers.push_back({reader.q.tensor(), reader.dbc.tensor()});
  const bool dense = !sources.empty();
  selective_scan_backward(stream, {.own = p.own.recurrence(),
                                   .sources = sources,
                                   .readers = readers,
                                   .gate = dense ? p.gate.tensor() : Tensor(),
                                   .skip = p.skip.tensor(),
                                   .z = p.z_matrix(),
                                   .dout = p.dout.tensor(),
                                   .du = g.du.tensor(),
                                   .ddt = g.ddt.tensor(),
                                   .ddbc = g.ddbc.tensor(),
                                   .dz = in_place ? p.z_matrix() : Matrix(g.dz.tensor()),
                                   .dgate = !dense     ? Tensor()
                                            : in_place ? p.gate.tensor()
                                                       : g.dgate.tensor(),
                                   .q = dense ? g.q.tensor() : Tensor(),
                                   .out = in_place ? p.dout.tensor()
                                          : out    ? g.out.tensor()
                                                   : Tensor(),
                                   .dA_log = g.dA_log.tensor(),
                                   .dskip = g.dskip.tensor(),
                                   .ddt_bias = g.ddt_bias.tensor(),
                                   .scratch = g.scratch.tensor()});
}

void expect_forward_close(Problem& p, bool from_initial) {
  SCOPED_TRACE(p.name());
  Overwritten out({p.x.B, p.x.T, p.x.D}), last({p.x.B, p.x.D, p.x.N});
  run_forward(p, out.tensor(), from_initial, last.tensor());
  const OracleScan scan = p.in_double(from_initial);
  EXPECT_CLOSE(out, oracle::forward(scan), kBound);

  const oracle::Doubles h = oracle::materialise(p.x, scan.own);
  oracle::Doubles expected_last(p.x.at(p.x.B * p.x.D * p.x.N)), starts(p.own.chunk_states.values().size());
  for (std::int64_t b = 0; b < p.x.B; ++b) {
    for (std::int64_t d = 0; d < p.x.D; ++d) {
      for (std::int64_t n = 0; n < p.x.N; ++n) {
        expected_last[p.x.state(b, d, n)] = h[p.x.states(b, p.x.T - 1, d, n)];
        for (std::int64_t s = 0; s < scan_chunks(p.x.T); ++s) {
          starts[p.x.at(((b * scan_chunks(p.x.T) + s) * p.x.D + d) * p.x.N + n)] =
              s == 0 ? scan.own.initial[p.x.state(b, d, n)] : h[p.x.states(b, s * kScanChunk - 1, d, n)];
        }
      }
    }
  }
  EXPECT_CLOSE(last, expected_last, kBound);
  EXPECT_CLOSE(p.own.chunk_states, starts, kBound);
}

void expect_backward_close(Problem& p) {
  SCOPED_TRACE(p.name());
  const ScanExtents& x = p.x;
  save_states(p);
  Gradients g(x);
  const Gradients before(x);
  run_backward(p, g);
  OracleGradients expected = oracle::backward(p.in_double());
  EXPECT_CLOSE(g.out, oracle::forward(p.in_double()), kBound);
  const auto add = [](oracle::Doubles& gradient, const Guarded<float>& start) {
    for (std::size_t i = 0; i < gradient.size(); ++i) gradient[i] += start.values()[i];
  };
  add(expected.dA_log, before.dA_log);
  add(expected.dskip, before.dskip);
  add(expected.ddt_bias, before.ddt_bias);
  for (std::int64_t row = 0; row < x.B * x.T; ++row) {
    for (std::int64_t j = 0; j < x.R; ++j) {
      const std::int64_t i = row * (x.R + 2 * x.N) + j;
      EXPECT_EQ(g.ddbc[i], before.ddbc[i]) << "a δ column was written";
      expected.ddbc[x.at(i)] = before.ddbc[i];
    }
  }
  EXPECT_CLOSE(g.du, expected.du, kBound);
  EXPECT_CLOSE(g.ddt, expected.ddt, kBound);
  EXPECT_CLOSE(g.ddbc, expected.ddbc, kBound);
  EXPECT_CLOSE(g.dz, expected.dz, kBound);
  EXPECT_CLOSE(g.dA_log, expected.dA_log, kBound);
  EXPECT_CLOSE(g.dskip, expected.dskip, kSumBound);
  EXPECT_CLOSE(g.ddt_bias, expected.ddt_bias, kSumBound);
  if (!p.sources.empty()) {
    EXPECT_CLOSE(g.dgate, expected.dgate, kBound);
    EXPECT_CLOSE(g.q, expected.q, kBound);
  }
}

/// Calls run(problem) over the edges of channels, chunks and states; batch, sources and readers go around with them.
template <class Run>
void for_each_size(const Run& run) {
  constexpr int kSources[] = {0, 1, 2, 4}, kReaders[] = {0, 1, 3};
  int i = 0;
  for (const std::int64_t D : {1, 5, 16, 24, 37}) {
    for (const std::int64_t T : {1, 31, 32, 33, 100}) {
      for (const std::int64_t N : {16, 4}) {
        Problem p({.B = i % 3 == 0 ? 3 : 1, .T = T, .D = D, .N = N, .R = i % 4}, kSources[i % 4], kReaders[i % 3]);
        run(p);
        ++i;
      }
    }
  }
}

TEST(SelectiveScanOracle, GradientsAreTheDerivatives) {
  Problem p({.B = 2, .T = 5, .D = 3, .N = 2, .R = 1}, 2, 2);
  OracleScan scan = p.in_double(true);
  const OracleGradients g = oracle::backward(scan);
  const auto expect_derivative = [&](std::vector<double>& input, const std::vector<double>& gradient, const char* name) {
    const std::vector<double> numeric = oracle::finite_differences(input, [&] { return oracle::loss(scan); });
    EXPECT_LT(oracle::relative_error(std::span(gradient), std::span<const double>(numeric)), 1e-8) << name;
  };
  expect_derivative(scan.own.u, g.du, "du");
  expect_derivative(scan.own.dt, g.ddt, "ddt");
  expect_derivative(scan.own.dbc, g.ddbc, "ddbc");
  expect_derivative(scan.own.A_log, g.dA_log, "dA_log");
  expect_derivative(scan.own.dt_bias, g.ddt_bias, "ddt_bias");
  expect_derivative(scan.z, g.dz, "dz");
  expect_derivative(scan.gate, g.dgate, "dgate");
  expect_derivative(scan.skip, g.dskip, "dskip");

  // q with this layer's C is all that a source needs to know of this layer.
  OracleScan source{scan.x, scan.sources[1], {}, {{g.q, scan.own.dbc}}, scan.gate, scan.skip, scan.z, scan.dout};
  source.dout.assign(scan.dout.size(), 0.0);
  const OracleGradients through = oracle::backward(source);
  expect_derivative(scan.sources[1].u, through.du, "du of a source");
  expect_derivative(scan.sources[1].dt, through.ddt, "ddt of a source");
  expect_derivative(scan.sources[1].A_log, through.dA_log, "dA_log of a source");
}

TEST(SelectiveScan, ForwardMatchesTheOracle) {
  for_each_size([](Problem& p) {
    expect_forward_close(p, false);
    expect_forward_close(p, true);
  });
}

TEST(SelectiveScan, BackwardMatchesTheOracle) {
  for_each_size(expect_backward_close);
}

TEST(SelectiveScan, TimeStepsFromNothingToForgetting) {
  // Δ from 1e-20 to 150: decays from 1 to 0.
  Problem p({.B = 1, .T = 70, .D = 20, .N = 16, .R = 2}, 2, 1, 50.0f);
  expect_forward_close(p, true);
  expect_backward_close(p);
}

TEST(SelectiveScan, ManyStatesAndReaders) {
  Problem p({.B = 1, .T = 40, .D = 3, .N = kMaxScanStates / 4, .R = 0}, 3, 0);
  expect_forward_close(p, false);
  expect_backward_close(p);
  Problem read({.B = 1, .T = 40, .D = 3, .N = 2, .R = 0}, 0, kMaxScanReaders);
  expect_backward_close(read);
}

TEST(SelectiveScan, ShutGateIsPlainMambaBitForBit) {
  const ScanExtents x{.B = 2, .T = 50, .D = 21, .N = 16, .R = 3};
  Problem plain(x, 0, 0), dense(x, 2, 0);
  std::fill(dense.gate.values().begin(), dense.gate.values().end(), 0.0f);
  Overwritten plain_out({x.B, x.T, x.D}), dense_out({x.B, x.T, x.D});
  run_forward(plain, plain_out.tensor());
  run_forward(dense, dense_out.tensor());
  EXPECT_TRUE(oracle::same_bits(plain_out.values(), dense_out.values()));
}

TEST(SelectiveScan, InPlaceAndAgainGiveTheSameBits) {
  const ScanExtents x{.B = 2, .T = 45, .D = 21, .N = 16, .R = 3};
  Problem p(x, 2, 1);
  Overwritten out({x.B, x.T, x.D});
  run_forward(p, out.tensor());
  save_states(p);
  Gradients first(x), second(x, 3.0f), in_place(x);
  run_backward(p, first);
  run_backward(p, second, false, false);

  Problem overwritten(x, 2, 1);
  run_forward(overwritten, overwritten.z.tensor());
  EXPECT_TRUE(oracle::same_bits(out.values(), overwritten.z.values()));
  std::copy(p.z.values().begin(), p.z.values().end(), overwritten.z.values().begin());
  save_states(overwritten);
  run_backward(overwritten, in_place, true);
  EXPECT_TRUE(oracle::same_bits(first.dz.values(), overwritten.z.values()));
  EXPECT_TRUE(oracle::same_bits(first.dgate.values(), overwritten.gate.values()));
  EXPECT_TRUE(oracle::same_bits(first.out.values(), overwritten.dout.values()));
  for (Gradients* other : {&second, &in_place}) {
    EXPECT_TRUE(oracle::same_bits(first.du.values(), other->du.values()));
    EXPECT_TRUE(oracle::same_bits(first.ddt.values(), other->ddt.values()));
    EXPECT_TRUE(oracle::same_bits(first.ddbc.values(), other->ddbc.values()));
    EXPECT_TRUE(oracle::same_bits(first.q.values(), other->q.values()));
    EXPECT_TRUE(oracle::same_bits(first.dA_log.values(), other->dA_log.values()));
    EXPECT_TRUE(oracle::same_bits(first.dskip.values(), other->dskip.values()));
    EXPECT_TRUE(oracle::same_bits(first.ddt_bias.values(), other->ddt_bias.values()));
  }
  EXPECT_TRUE(oracle::same_bits(first.dz.values(), second.dz.values()));
}

TEST(SelectiveScan, ZAndItsCotangentMayBeColumnsOfSomethingWider) {
  const ScanExtents x{.B = 2, .T = 45, .D = 21, .N = 16, .R = 3};
  Problem p(x, 1, 1), wide(x, 1, 1);
  wide.widen();
  Overwritten out({x.B, x.T, x.D}), wide_out({x.B, x.T, x.D});
  run_forward(p, out.tensor());
  run_forward(wide, wide_out.tensor());
  EXPECT_TRUE(oracle::same_bits(out.values(), wide_out.values()));
  save_states(p);
  save_states(wide);
  Gradients g(x), wide_g(x);
  run_backward(p, g);
  run_backward(wide, wide_g, /*in_place=*/true);
  EXPECT_TRUE(oracle::same_bits(g.du.values(), wide_g.du.values()));
  EXPECT_TRUE(oracle::same_bits(g.dA_log.values(), wide_g.dA_log.values()));
  for (std::int64_t row = 0; row < x.B * x.T; ++row) {
    for (std::int64_t d = 0; d < x.D; ++d) {
      ASSERT_EQ((*wide.wide_z)[row * 2 * x.D + d], -5.0f);
      ASSERT_EQ((*wide.wide_z)[row * 2 * x.D + x.D + d], g.dz[row * x.D + d]);
    }
  }
}

/// Tokens [begin, end) of one sequence.
ScanRecurrence piece(const ScanRecurrence& whole, std::int64_t begin, std::int64_t end, const Tensor& state) {
  const auto cut = [&](const Tensor& tensor) {
    return tensor.reshaped({tensor.size(1), tensor.size(2)})
        .slice(begin, end - begin)
        .reshaped({1, end - begin, tensor.size(2)});
  };
  return {cut(whole.u), cut(whole.dt), whole.dt_bias, whole.A_log, cut(whole.dbc), state, {}};
}

TEST(SelectiveScan, FeedingInPiecesAgreesWithFeedingAtOnce) {
  const ScanExtents x{.B = 1, .T = 75, .D = 21, .N = 16, .R = 3};
  Problem p(x, 1, 0);
  const oracle::Doubles expected = oracle::forward(p.in_double(true));
  Overwritten out({x.B, x.T, x.D}), ignored({x.B, x.T, x.D});
  Stream stream(Device::cpu());
  std::int64_t begin = 0;
  for (const std::int64_t count : {1, 1, 1, 33, 32, 6, 1}) {
    const std::int64_t end = begin + count;
    // The states are kept in `initial`: the reader runs from the source's state before the source moves it on.
    const ScanRecurrence own = piece(p.own.recurrence(), begin, end, p.own.initial.tensor());
    const ScanRecurrence source = piece(p.sources[0].recurrence(), begin, end, p.sources[0].initial.tensor());
    const auto cut = [&](Guarded<float>& whole) {
      return whole.tensor().reshaped({x.T, x.D}).slice(begin, count).reshaped({1, count, x.D});
    };
    selective_scan_forward(stream, {.own = own,
                                    .sources = {&source, 1},
                                    .gate = cut(p.gate),
                                    .skip = p.skip.tensor(),
                                    .z = cut(p.z),
                                    .out = cut(out),
                                    .final_state = own.initial});
    selective_scan_forward(stream, {.own = source,
                                    .sources = {},
                                    .gate = {},
                                    .skip = p.skip.tensor(),
                                    .z = cut(p.z),
                                    .out = cut(ignored),
                                    .final_state = source.initial});
    begin = end;
  }
  ASSERT_EQ(begin, x.T);
  EXPECT_CLOSE(out, expected, kBound);
}

TEST(SelectiveScan, NanStaysInItsChannelAndReachesTheGradients) {
  const ScanExtents x{.B = 1, .T = 40, .D = 20, .N = 16, .R = 1};
  Problem p(x, 0, 0);
  p.own.u[35 * x.D + 3] = kNan;
  Overwritten out({x.B, x.T, x.D});
  run_forward(p, out.tensor());
  for (std::int64_t t = 0; t < x.T; ++t) {
    for (std::int64_t d = 0; d < x.D; ++d) EXPECT_EQ(std::isnan(out[t * x.D + d]), d == 3 && t >= 35) << t << " " << d;
  }
  Gradients g(x);
  run_backward(p, g);
  EXPECT_TRUE(std::isnan(g.dA_log[3 * x.N]));
  EXPECT_TRUE(std::isnan(g.ddbc[37 * (x.R + 2 * x.N) + x.R + x.N]));
  EXPECT_FALSE(std::isnan(g.dA_log[4 * x.N]));
}

TEST(SelectiveScan, EmptySequenceKeepsItsState) {
  Problem p({.B = 2, .T = 0, .D = 5, .N = 4, .R = 1}, 0, 0);
  Overwritten out({2, 0, 5}), last({2, 5, 4});
  run_forward(p, out.tensor(), true, last.tensor());
  EXPECT_TRUE(oracle::same_bits(last.values(), p.own.initial.values()));
}

/// The message of the Error that `run` throws; empty when it throws none.
template <class Run>
std::string message_of(const Run& run) {
  try {
    run();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(SelectiveScan, WrongArgumentsAreNamed) {
  const ScanExtents x{.B = 1, .T = 4, .D = 5, .N = 2, .R = 1};
  Problem p(x, 1, 1);
  Overwritten out({x.B, x.T, x.D});
  Overwritten narrow({x.B, x.T, x.D - 1});
  Stream stream(Device::cpu());
  const std::vector<ScanRecurrence> sources = p.source_recurrences();
  const ScanForwardArgs good{.own = p.own.recurrence(),
                             .sources = sources,
                             .gate = p.gate.tensor(),
                             .skip = p.skip.tensor(),
                             .z = p.z.tensor(),
                             .out = out.tensor(),
                             .final_state = {}};
  const auto refusal = [&](const auto& change) {
    ScanForwardArgs args = good;
    change(args);
    return message_of([&] { selective_scan_forward(stream, args); });
  };
  EXPECT_EQ(refusal([](ScanForwardArgs&) {}), "");
  EXPECT_EQ(refusal([&](ScanForwardArgs& args) { args.z = narrow.tensor(); }),
            "selective_scan_forward: z is float32 [1, 4, 4], expected float32 [4 rows, 5]");
  EXPECT_EQ(refusal([](ScanForwardArgs& args) { args.out = {}; }),
            "selective_scan_forward: out is absent, expected float32 [1, 4, 5]");
  EXPECT_EQ(refusal([&](ScanForwardArgs& args) { args.own.dt = narrow.tensor(); }),
            "selective_scan_forward: own: dt is float32 [1, 4, 4], expected float32 [1, 4, 5]");
  EXPECT_EQ(refusal([](ScanForwardArgs& args) { args.gate = {}; }),
            "selective_scan_forward: gate must be present exactly when there are sources");
  EXPECT_EQ(refusal([](ScanForwardArgs& args) { args.sources = {}; }),
            "selective_scan_forward: gate must be present exactly when there are sources");
  std::vector<ScanRecurrence> wrong = sources;
  wrong[0].A_log = p.own.dbc.tensor();
  EXPECT_EQ(refusal([&](ScanForwardArgs& args) { args.sources = wrong; }),
            "selective_scan_forward: a source: A_log is float32 [1, 4, 5], expected float32 [5, 2]");
  const std::vector<ScanRecurrence> many(kMaxScanStates / 2, sources[0]);
  EXPECT_NE(refusal([&](ScanForwardArgs& args) { args.sources = many; }).find("more than 512 states"), std::string::npos);
}

TEST(SelectiveScan, PlanningChecksAndTouchesNothing) {
  const Shape activations{1, 4, 5};
  const auto planned = [](Shape shape) { return Tensor(nullptr, shape, DType::f32, Device::plan()); };
  Stream stream(Device::plan());
  const ScanRecurrence own{
      planned(activations), planned(activations), planned({5}), planned({5, 2}), planned({1, 4, 5}), {}, {}};
  ScanForwardArgs args{.own = own,
                       .sources = {},
                       .gate = {},
                       .skip = planned({5}),
                       .z = planned(activations),
                       .out = planned(activations),
                       .final_state = {}};
  selective_scan_forward(stream, args);
  args.skip = planned({4});
  EXPECT_THROW(selective_scan_forward(stream, args), Error);
}

}  // namespace
}  // namespace dm
