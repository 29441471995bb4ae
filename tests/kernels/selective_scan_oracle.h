// The selective scan in double with every state materialised: the contract's formulas, written down one after the other.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace dm::oracle {

using Doubles = std::vector<double>;

inline double sigmoid(double x) {
  return 1 / (1 + std::exp(-x));
}
inline double silu(double x) {
  return x * sigmoid(x);
}
inline double silu_derivative(double x) {
  return sigmoid(x) * (1 + x * sigmoid(-x));
}
inline double softplus(double x) {
  return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x)));
}

/// The extents, and where an element of each kind of tensor lies.
struct ScanExtents {
  std::int64_t B, T, D, N, R;

  std::size_t activation(std::int64_t b, std::int64_t t, std::int64_t d) const { return at((b * T + t) * D + d); }
  std::size_t state(std::int64_t b, std::int64_t d, std::int64_t n) const { return at((b * D + d) * N + n); }
  std::size_t states(std::int64_t b, std::int64_t t, std::int64_t d, std::int64_t n) const {
    return at(((b * T + t) * D + d) * N + n);
  }
  std::size_t input(std::int64_t b, std::int64_t t, std::int64_t n) const { return at((b * T + t) * (R + 2 * N) + R + n); }
  std::size_t output(std::int64_t b, std::int64_t t, std::int64_t n) const { return input(b, t, n) + at(N); }
  std::size_t rate(std::int64_t d, std::int64_t n) const { return at(d * N + n); }
  static std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

  /// Calls run(b, t, d) for all.
  template <class Run>
  void each(const Run& run) const {
    for (std::int64_t b = 0; b < B; ++b)
      for (std::int64_t t = 0; t < T; ++t)
        for (std::int64_t d = 0; d < D; ++d) run(b, t, d);
  }
};

struct OracleRecurrence {
  Doubles u, dt, dt_bias, A_log, dbc, initial;
};

struct OracleReader {
  Doubles q, dbc;
};

struct OracleScan {
  ScanExtents x;
  OracleRecurrence own;
  std::vector<OracleRecurrence> sources;
  std::vector<OracleReader> readers;
  Doubles gate, skip, z, dout;
};

inline double delta(const ScanExtents& x, const OracleRecurrence& r, std::int64_t b, std::int64_t t, std::int64_t d) {
  return softplus(r.dt[x.activation(b, t, d)] + r.dt_bias[x.at(d)]);
}

/// h [B, T, D, N].
inline Doubles materialise(const ScanExtents& x, const OracleRecurrence& r) {
  Doubles h(x.at(x.B * x.T * x.D * x.N));
  x.each([&](auto b, auto t, auto d) {
    const double step = delta(x, r, b, t, d), u = r.u[x.activation(b, t, d)];
    for (std::int64_t n = 0; n < x.N; ++n) {
      const double A = -std::exp(r.A_log[x.rate(d, n)]);
      const double before = t > 0 ? h[x.states(b, t - 1, d, n)] : r.initial[x.state(b, d, n)];
      h[x.states(b, t, d, n)] = std::exp(step * A) * before + step * u * r.dbc[x.input(b, t, n)];
    }
  });
  return h;
}

/// Σ_s h^s.
inline Doubles materialise_sources(const OracleScan& scan) {
  Doubles sum(scan.x.at(scan.x.B * scan.x.T * scan.x.D * scan.x.N));
  for (const OracleRecurrence& source : scan.sources) {
    const Doubles h = materialise(scan.x, source);
    for (std::size_t i = 0; i < h.size(); ++i) sum[i] += h[i];
  }
  return sum;
}

/// h · C, read out with the layer's own C.
inline Doubles read_out(const OracleScan& scan, const Doubles& h) {
  const ScanExtents& x = scan.x;
  Doubles out(x.at(x.B * x.T * x.D));
  x.each([&](auto b, auto t, auto d) {
    for (std::int64_t n = 0; n < x.N; ++n) {
      out[x.activation(b, t, d)] += h[x.states(b, t, d, n)] * scan.own.dbc[x.output(b, t, n)];
    }
  });
  return out;
}

/// y_t = e_t + silu(gate_t) ⊙ r_t + skip ⊙ u_t
inline Doubles fused(const OracleScan& scan, const Doubles& e, const Doubles& r) {
  Doubles y(e.size());
  for (std::size_t i = 0; i < y.size(); ++i) {
    y[i] = e[i] + scan.skip[i % scan.x.at(scan.x.D)] * scan.own.u[i];
    if (!scan.sources.empty()) y[i] += silu(scan.gate[i]) * r[i];
  }
  return y;
}

inline Doubles forward(const OracleScan& scan) {
  Doubles out = fused(scan, read_out(scan, materialise(scan.x, scan.own)), read_out(scan, materialise_sources(scan)));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] *= silu(scan.z[i]);
  return out;
}

/// What the cotangents are the derivatives of: Σ dout ⊙ out + Σ_readers Σ q^k_t ⊗ C^k_t · h_t.
inline double loss(const OracleScan& scan) {
  const ScanExtents& x = scan.x;
  const Doubles out = forward(scan), h = materialise(x, scan.own);
  double sum = 0;
  for (std::size_t i = 0; i < out.size(); ++i) sum += scan.dout[i] * out[i];
  for (const OracleReader& reader : scan.readers) {
    x.each([&](auto b, auto t, auto d) {
      for (std::int64_t n = 0; n < x.N; ++n) {
        sum += reader.q[x.activation(b, t, d)] * reader.dbc[x.output(b, t, n)] * h[x.states(b, t, d, n)];
      }
    });
  }
  return sum;
}

struct OracleGradients {
  Doubles du, ddt, ddbc, dz, dgate, q, dA_log, dskip, ddt_bias;
};

inline OracleGradients backward(const OracleScan& scan) {
  const ScanExtents& x = scan.x;
  const OracleRecurrence& own = scan.own;
  const Doubles h = materialise(x, own), dense = materialise_sources(scan);
  const Doubles r = read_out(scan, dense), y = fused(scan, read_out(scan, h), r);
  const Doubles activations(y.size());
  OracleGradients g{activations,
                    activations,
                    Doubles(own.dbc.size()),
                    activations,
                    activations,
                    activations,
                    Doubles(own.A_log.size()),
                    Doubles(own.dt_bias.size()),
                    Doubles(own.dt_bias.size())};
  Doubles carry(x.at(x.B * x.D * x.N));  // exp(Δ_{t+1} A) λ_{t+1}
  for (std::int64_t t = x.T - 1; t >= 0; --t) {
    for (std::int64_t b = 0; b < x.B; ++b) {
      for (std::int64_t d = 0; d < x.D; ++d) {
        const std::size_t i = x.activation(b, t, d), c = x.at(d);
        const double dy = scan.dout[i] * silu(scan.z[i]);
        g.dz[i] = scan.dout[i] * y[i] * silu_derivative(scan.z[i]);
        g.dskip[c] += dy * own.u[i];
        if (!scan.sources.empty()) {
          g.dgate[i] = dy * r[i] * silu_derivative(scan.gate[i]);
          g.q[i] = dy * silu(scan.gate[i]);
        }
        const double step = delta(x, own, b, t, d);
        double dstep = 0;
        g.du[i] = scan.skip[c] * dy;
        for (std::int64_t n = 0; n < x.N; ++n) {
          const double A = -std::exp(own.A_log[x.rate(d, n)]), decay = std::exp(step * A);
          const double before = t > 0 ? h[x.states(b, t - 1, d, n)] : own.initial[x.state(b, d, n)];
          const double B = own.dbc[x.input(b, t, n)];
          double lambda = dy * own.dbc[x.output(b, t, n)] + carry[x.state(b, d, n)];
          for (const OracleReader& reader : scan.readers) lambda += reader.q[i] * reader.dbc[x.output(b, t, n)];
          g.ddbc[x.output(b, t, n)] += dy * h[x.states(b, t, d, n)] + g.q[i] * dense[x.states(b, t, d, n)];
          g.ddbc[x.input(b, t, n)] += step * own.u[i] * lambda;
          g.du[i] += step * lambda * B;
          dstep += lambda * (A * decay * before + own.u[i] * B);
          g.dA_log[x.rate(d, n)] += A * step * lambda * decay * before;
          carry[x.state(b, d, n)] = decay * lambda;
        }
        g.ddt[i] = dstep * sigmoid(own.dt[i] + own.dt_bias[c]);
        g.ddt_bias[c] += g.ddt[i];
      }
    }
  }
  return g;
}

}  // namespace dm::oracle
