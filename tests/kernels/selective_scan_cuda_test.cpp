// The selective scan on the GPU against its CPU twin, forward and backward, in float32 and bfloat16.
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "kernels/selective_scan.h"
#include "runtime/buffer.h"
#include "runtime/copy.h"
#include "tests/kernels/oracle.h"

namespace dm {
namespace {

/// One problem: extents, and how it is to be computed.
struct Case {
  std::int64_t B, T, D, N, R;
  int sources, readers;
  bool in_place = false;  ///< dz is z, dgate is gate, forward's out is z, backward's is dout.
  bool shifted = false;   ///< Activations begin at an address that no vector access may use.
  bool out = true;        ///< Backward is asked for out.
  bool wide = false;      ///< z and dz are the right halves of twice as many columns.
  bool rounded = false;   ///< ddbc is of the compute dtype.
  /// The middle element of the activation of this name is `poison`.
  std::string poisoned = {};
  float poison = std::numeric_limits<float>::quiet_NaN();

  std::string name(DType compute) const {
    return std::string(name_of(compute)) + " B " + std::to_string(B) + " T " + std::to_string(T) + " D " +
           std::to_string(D) + " N " + std::to_string(N) + " R " + std::to_string(R) + " sources " +
           std::to_string(sources) + " readers " + std::to_string(readers) + (in_place ? " in place" : "") +
           (shifted ? " shifted" : "") + (out ? "" : " without out") + (wide ? " wide" : "") + (rounded ? " rounded" : "") +
           (poisoned.empty() ? "" : fmt::format(" {} {}", poison, poisoned));
  }
};

/// Named tensors on one device, each between guard words. On the CPU everything is float32, with inputs rounded as the
/// GPU's.
class Place {
 public:
  Place(Device device, DType compute, const Case& c)
      : stream_(device),
        compute_(compute),
        stored_(device.kind == DeviceKind::cpu ? DType::f32 : compute),
        shifted_(c.shifted && device.kind == DeviceKind::cuda),
        poisoned_(c.poisoned),
        poison_(c.poison) {}

  Stream& stream() { return stream_; }
  DType stored() const { return stored_; }

  /// Normal numbers of the stream `name`.
  Tensor activation(const std::string& name, Shape shape, float deviation = 1.0f) {
    oracle::Random values(name, shape, deviation);
    if (name == poisoned_) values[shape.numel() / 2] = poison_;
    return input(name, shape, stored_, compute_, values);
  }
  Tensor parameter(const std::string& name, Shape shape, float deviation = 1.0f, float mean = 0.0f) {
    return input(name, shape, DType::f32, DType::f32, oracle::Random(name, shape, deviation, mean));
  }
  Tensor rates(const std::string& name, std::int64_t D, std::int64_t N) {
    oracle::Random values(name, {D, N}, 0.2f);
    for (std::int64_t i = 0; i < D * N; ++i) values[i] += std::log(static_cast<float>(1 + i % N));
    return input(name, {D, N}, DType::f32, DType::f32, values);
  }
  /// NaN until an op writes it.
  Tensor output(const std::string& name, Shape shape) { return output(name, shape, stored_); }
  Tensor output(const std::string& name, Shape shape, DType dtype) {
    const auto bytes = static_cast<std::size_t>(shape.numel() * size_of(dtype));
    return place(name, shape, dtype, std::vector<std::byte>(bytes, std::byte{0xff}));
  }
  /// Absent unless `present`.
  Tensor output_if(bool present, const std::string& name, Shape shape) { return present ? output(name, shape) : Tensor(); }

  std::vector<float> read(const Tensor& tensor) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.bytes()));
    copy(stream_, Tensor(tensor.data(), {tensor.bytes()}, DType::u8, tensor.device()),
         Tensor(bytes.data(), {tensor.bytes()}, DType::u8, Device::cpu()));
    stream_.synchronize();
    std::vector<float> values(static_cast<std::size_t>(tensor.numel()));
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (tensor.dtype() == DType::f32) {
        std::memcpy(&values[i], bytes.data() + 4 * i, 4);
      } else {
        BFloat16 half;
        std::memcpy(&half, bytes.data() + 2 * i, 2);
        values[i] = static_cast<float>(half);
      }
    }
    return values;
  }

  void expect_guards() {
    for (const Kept& kept : kept_) {
      const std::int64_t bytes = kept.buffer.bytes();
      std::vector<std::byte> now(static_cast<std::size_t>(bytes));
      copy(stream_, kept.buffer.tensor({bytes}, DType::u8), Tensor(now.data(), {bytes}, DType::u8, Device::cpu()));
      stream_.synchronize();
      bool intact = true;
      for (std::size_t i = 0; i < now.size(); ++i) {
        if (i < kept.begin || i >= kept.end) intact = intact && now[i] == kGuard;
      }
      EXPECT_TRUE(intact) << "guard words around " << kept.buffer.name() << " were overwritten";
    }
  }

 private:
  static constexpr std::byte kGuard{0xa5};
  static constexpr std::size_t kGuardBytes = 256;
  struct Kept {
    Buffer buffer;
    std::size_t begin, end;
  };

  Tensor input(const std::string& name, Shape shape, DType dtype, DType rounded, const oracle::Guarded<float>& values) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(shape.numel() * size_of(dtype)));
    for (std::size_t i = 0; i < values.values().size(); ++i) {
      const BFloat16 half(values.values()[i]);
      const float value = rounded == DType::bf16 ? static_cast<float>(half) : values.values()[i];
      if (dtype == DType::f32) {
        std::memcpy(bytes.data() + 4 * i, &value, 4);
      } else {
        std::memcpy(bytes.data() + 2 * i, &half, 2);
      }
    }
    return place(name, shape, dtype, bytes);
  }

  Tensor place(const std::string& name, Shape shape, DType dtype, const std::vector<std::byte>& payload) {
    const bool activation = shape.rank() == 3 && name.find("dbc") == std::string::npos;
    const std::size_t begin = kGuardBytes + (shifted_ && activation ? static_cast<std::size_t>(size_of(dtype)) : 0);
    std::vector<std::byte> bytes(begin + payload.size() + kGuardBytes, kGuard);
    std::copy(payload.begin(), payload.end(), bytes.begin() + static_cast<std::ptrdiff_t>(begin));
    const auto count = static_cast<std::int64_t>(bytes.size());
    kept_.push_back(Kept{Buffer(name, count, stream_.device(), report_), begin, begin + payload.size()});
    const Buffer& buffer = kept_.back().buffer;
    copy(stream_, Tensor(bytes.data(), {count}, DType::u8, Device::cpu()), buffer.tensor({count}, DType::u8));
    stream_.synchronize();
    return Tensor(static_cast<std::byte*>(buffer.data()) + begin, shape, dtype, stream_.device());
  }

  Stream stream_;
  DType compute_, stored_;
  bool shifted_;
  std::string poisoned_;
  float poison_;
  MemoryReport report_;
  std::deque<Kept> kept_;
};

using Results = std::map<std::string, std::vector<float>>;

ScanRecurrence recurrence(Place& place, const std::string& name, const Case& c) {
  const ScanStates saved = scan_states(place.stream().device().kind, place.stored(), c.B, c.T, c.D, c.N);
  return {.u = place.activation(name + ".u", {c.B, c.T, c.D}),
          .dt = place.activation(name + ".dt", {c.B, c.T, c.D}),
          .dt_bias = place.parameter(name + ".dt_bias", {c.D}, 1.5f, -3.0f),
          .A_log = place.rates(name + ".A_log", c.D, c.N),
          .dbc = place.parameter(name + ".dbc", {c.B, c.T, c.R + 2 * c.N}),
          .initial = place.parameter(name + ".initial", {c.B, c.D, c.N}),
          .chunk_states = place.output(name + ".chunk_states", saved.shape, saved.dtype)};
}

/// A forward from initial states, a forward of every layer from zero to save its states, and a backward.
Results compute(const Case& c, Device device, DType compute) {
  Place place(device, compute, c);
  const Shape activations{c.B, c.T, c.D};
  const bool dense = c.sources > 0;
  ScanRecurrence own = recurrence(place, "own", c);
  std::vector<ScanRecurrence> sources;
  for (int s = 0; s < c.sources; ++s) sources.push_back(recurrence(place, "source" + std::to_string(s), c));
  std::vector<ScanReader> readers;
  for (int k = 0; k < c.readers; ++k) {
    const std::string name = "reader" + std::to_string(k);
    readers.push_back(
        {place.activation(name + ".q", activations), place.parameter(name + ".dbc", {c.B, c.T, c.R + 2 * c.N})});
  }
  const Tensor gate = dense ? place.activation("gate", activations) : Tensor(), skip = place.parameter("skip", {c.D});
  Results results;

  const Shape z_shape{c.B, c.T, c.wide ? 2 * c.D : c.D};
  const auto z_part = [&](const Tensor& whole) { return Matrix(whole).columns_of(c.wide ? c.D : 0, c.D); };
  const Tensor z_of_forward = place.activation("z", z_shape);
  const Tensor out = c.in_place ? z_of_forward : place.output("out", activations);
  const Tensor final_state = place.output("final_state", {c.B, c.D, c.N}, DType::f32);
  selective_scan_forward(place.stream(), {own, sources, gate, skip, z_part(z_of_forward), out, final_state});
  results["out"] = place.read(out);
  results["final_state"] = place.read(final_state);

  const Tensor z_whole = place.activation("z", z_shape), from_zero = place.output("out from zero", activations);
  const Matrix z = z_part(z_whole);
  own.initial = {};
  for (ScanRecurrence& source : sources) {
    source.initial = {};
    selective_scan_forward(place.stream(), {source, {}, {}, skip, z, from_zero, {}});
  }
  selective_scan_forward(place.stream(), {own, sources, gate, skip, z, from_zero, {}});

  const std::int64_t scratch = scan_backward_scratch(device.kind, c.B, c.T, c.D, c.N, dense);
  const Tensor dout = place.activation("dout", activations);
  const Shape projections{c.B, c.T, c.R + 2 * c.N};
  // Where dz is a part, the rest has numbers that must stay.
  const Tensor dz_whole = c.in_place ? z_whole : c.wide ? place.activation("dz", z_shape) : place.output("dz", activations);
  const ScanBackwardArgs args{
      .own = own,
      .sources = sources,
      .readers = readers,
      .gate = gate,
      .skip = skip,
      .z = z,
      .dout = dout,
      .du = place.output("du", activations),
      .ddt = place.output("ddt", activations),
      .ddbc = c.rounded ? place.activation("ddbc", projections) : place.parameter("ddbc", projections),
      .dz = z_part(dz_whole),
      .dgate = c.in_place ? gate : place.output_if(dense, "dgate", activations),
      .q = place.output_if(dense, "q", activations),
      .out = c.in_place ? dout : place.output_if(c.out, "out again", activations),
      .dA_log = place.parameter("dA_log", {c.D, c.N}),
      .dskip = place.parameter("dskip", {c.D}),
      .ddt_bias = place.parameter("ddt_bias", {c.D}),
      .scratch = place.output("scratch", {scratch}, DType::f32)};
  selective_scan_backward(place.stream(), args);
  results["du"] = place.read(args.du);
  results["ddt"] = place.read(args.ddt);
  results["ddbc"] = place.read(args.ddbc);
  results["dz"] = place.read(dz_whole);
  results["dA_log"] = place.read(args.dA_log);
  results["dskip"] = place.read(args.dskip);
  results["ddt_bias"] = place.read(args.ddt_bias);
  if (dense) {
    results["dgate"] = place.read(args.dgate);
    results["q"] = place.read(args.q);
  }
  if (args.out) {
    results["out from zero"] = place.read(from_zero);
    results["out again"] = place.read(args.out);
  }
  place.expect_guards();
  return results;
}

double difference(const std::vector<float>& actual, const std::vector<float>& expected) {
  const std::vector<double> wide(expected.begin(), expected.end());
  return oracle::relative_error(std::span<const float>(actual), std::span<const double>(wide));
}

void expect_twins_agree(const Case& c, DType compute_dtype) {
  SCOPED_TRACE(c.name(compute_dtype));
  const Results expected = compute(c, Device::cpu(), compute_dtype);
  const Results actual = compute(c, Device::cuda(0), compute_dtype);
  const Results again = compute(c, Device::cuda(0), compute_dtype);
  for (const auto& [name, values] : expected) {
    // The norm of few elements does not average a rounding, nor a cancellation, away.
    const bool few = values.size() < 64;
    const double bound = compute_dtype == DType::f32 ? (few ? 1e-4 : 1e-5) : (few ? 3e-2 : 5e-3);
    EXPECT_LT(difference(actual.at(name), values), bound) << name;
    EXPECT_TRUE(oracle::same_bits(actual.at(name), again.at(name))) << name << " differs from run to run";
    if (name == "out again") {
      EXPECT_LT(difference(values, expected.at("out from zero")), few ? 1e-4 : 1e-5) << "the CPU's out and forward's";
      // In bfloat16 two neighbours may stand for the same number, and where one value is most of the norm these alone are
      // 5e-3 apart: between those that are few and those that average, each is only near its twin's.
      if (compute_dtype == DType::f32 || few || values.size() >= 1000) {
        EXPECT_LT(difference(actual.at(name), actual.at("out from zero")), bound) << "backward's out and forward's";
      }
    }
  }
}

class SelectiveScanCuda : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (cuda::device_count() == 0) GTEST_SKIP() << "skipped: no GPU";
  }
};

TEST_P(SelectiveScanCuda, EdgesOfTilesAndBlocks) {
  int i = 0;
  for (const std::int64_t D : {1, 5, 24, 64, 100}) {
    for (const std::int64_t T : {1, 7, 8, 9, 31, 33, 100}) {
      const std::int64_t N = i % 5 == 3 ? 4 : i % 5 == 4 ? 13 : 16;
      expect_twins_agree({.B = i % 4 == 1 ? 3 : 1, .T = T, .D = D, .N = N, .R = i % 4, .sources = i % 4, .readers = i % 5},
                         GetParam());
      ++i;
    }
  }
}

TEST_P(SelectiveScanCuda, AnyNumberOfSourcesReadersAndStates) {
  for (int sources = 0; sources <= 4; ++sources) {
    for (int readers = 0; readers <= 4; ++readers) {
      expect_twins_agree({.B = 2, .T = 40, .D = 72, .N = 16, .R = 5, .sources = sources, .readers = readers}, GetParam());
    }
  }
  for (const std::int64_t N : {1, 8, 17, 32, 40}) {
    expect_twins_agree({.B = 1, .T = 35, .D = 68, .N = N, .R = 4, .sources = 0, .readers = 0}, GetParam());
    expect_twins_agree({.B = 2, .T = 20, .D = 30, .N = N, .R = 3, .sources = 2, .readers = 1}, GetParam());
  }
}

TEST_P(SelectiveScanCuda, InPlaceAndUnaligned) {
  for (const int sources : {0, 1, 2, 3}) {
    expect_twins_agree({.B = 2, .T = 50, .D = 136, .N = 16, .R = 9, .sources = sources, .readers = 1, .in_place = true},
                       GetParam());
    expect_twins_agree({.B = 1, .T = 50, .D = 136, .N = 16, .R = 9, .sources = sources, .readers = 2, .shifted = true},
                       GetParam());
    expect_twins_agree({.B = 1, .T = 50, .D = 136, .N = 18, .R = 9, .sources = sources, .readers = 0, .in_place = true},
                       GetParam());
    expect_twins_agree({.B = 1, .T = 30, .D = 72, .N = 16, .R = 9, .sources = sources, .readers = 0, .out = false},
                       GetParam());
  }
}

TEST_P(SelectiveScanCuda, WholeTiles) {
  for (const int sources : {1, 2, 3}) {
    expect_twins_agree({.B = 2, .T = 64, .D = 144, .N = 16, .R = 4, .sources = sources, .readers = 1}, GetParam());
    expect_twins_agree({.B = 1, .T = 96, .D = 80, .N = 36, .R = 8, .sources = sources, .readers = 0, .wide = true},
                       GetParam());
    expect_twins_agree({.B = 1, .T = 32, .D = 32, .N = 12, .R = 4, .sources = sources, .readers = 2, .in_place = true},
                       GetParam());
    expect_twins_agree({.B = 2, .T = 96, .D = 128, .N = 16, .R = 4, .sources = sources, .readers = 1, .wide = true},
                       GetParam());
  }
  for (const int sources : {0, 1, 2}) {
    expect_twins_agree({.B = 2, .T = 160, .D = 128, .N = 16, .R = 4, .sources = sources, .readers = 0}, GetParam());
    expect_twins_agree({.B = 1, .T = 4096, .D = 64, .N = 16, .R = 4, .sources = sources, .readers = 1, .in_place = true},
                       GetParam());
  }
}

TEST_P(SelectiveScanCuda, SegmentsOfTime) {
  expect_twins_agree({.B = 2, .T = 512, .D = 24, .N = 16, .R = 4, .sources = 0, .readers = 0}, GetParam());
  expect_twins_agree({.B = 1, .T = 777, .D = 72, .N = 8, .R = 4, .sources = 0, .readers = 0}, GetParam());
  expect_twins_agree({.B = 1, .T = 777, .D = 70, .N = 16, .R = 4, .sources = 1, .readers = 3}, GetParam());
  expect_twins_agree({.B = 1, .T = 777, .D = 33, .N = 9, .R = 1, .sources = 2, .readers = 1}, GetParam());
  expect_twins_agree({.B = 2, .T = 530, .D = 20, .N = 37, .R = 0, .sources = 1, .readers = 1}, GetParam());
}

// Long sequences of few channels are cut into segments; where blocks are many, they walk whole sequences.
TEST_P(SelectiveScanCuda, ManySequencesAndLongOnes) {
  for (const int sources : {0, 1, 2}) {
    expect_twins_agree({.B = 90, .T = 33, .D = 24, .N = 16, .R = 4, .sources = sources, .readers = 0}, GetParam());
    expect_twins_agree({.B = 89, .T = 9, .D = 21, .N = 5, .R = 1, .sources = sources, .readers = 1}, GetParam());
    expect_twins_agree({.B = 1, .T = 4500, .D = 20, .N = 16, .R = 4, .sources = sources, .readers = 1}, GetParam());
  }
  expect_twins_agree({.B = 1, .T = 4567, .D = 9, .N = 7, .R = 2, .sources = 1, .readers = 0}, GetParam());
}

// Between the two, blocks of 16 channels fill a wave of multiprocessors, or two.
TEST_P(SelectiveScanCuda, NarrowBlocks) {
  for (const std::int64_t T : {1, 16, 17, 33, 100}) {
    for (const int sources : {0, 1, 2}) {
      expect_twins_agree({.B = 29, .T = T, .D = 56, .N = 16, .R = 4, .sources = sources, .readers = 0}, GetParam());
    }
  }
  for (const int sources : {0, 1, 2}) {
    expect_twins_agree({.B = 60, .T = 40, .D = 50, .N = 7, .R = 1, .sources = sources, .readers = 0}, GetParam());
    expect_twins_agree({.B = 30, .T = 400, .D = 64, .N = 16, .R = 4, .sources = sources, .readers = 0}, GetParam());
    expect_twins_agree({.B = 30, .T = 50, .D = 64, .N = 16, .R = 4, .sources = sources, .readers = 0, .in_place = true},
                       GetParam());
    expect_twins_agree({.B = 30, .T = 50, .D = 64, .N = 16, .R = 4, .sources = sources, .readers = 0, .shifted = true},
                       GetParam());
  }
}

TEST_P(SelectiveScanCuda, ZAsColumnsOfSomethingWider) {
  for (const int sources : {0, 1, 2, 3}) {
    for (const std::int64_t D : {5, 72}) {
      expect_twins_agree({.B = 2, .T = 50, .D = D, .N = 16, .R = 9, .sources = sources, .readers = 1, .wide = true},
                         GetParam());
    }
  }
  expect_twins_agree({.B = 2, .T = 30, .D = 64, .N = 20, .R = 4, .sources = 1, .readers = 0, .wide = true}, GetParam());
  expect_twins_agree({.B = 1, .T = 777, .D = 72, .N = 16, .R = 4, .sources = 1, .readers = 1, .wide = true}, GetParam());
}

TEST_P(SelectiveScanCuda, WideAndLong) {
  expect_twins_agree({.B = 1, .T = 100, .D = 2048, .N = 16, .R = 64, .sources = 2, .readers = 2}, GetParam());
  expect_twins_agree({.B = 3, .T = 2048, .D = 64, .N = 16, .R = 8, .sources = 1, .readers = 2}, GetParam());
  expect_twins_agree({.B = 1, .T = 5000, .D = 40, .N = 16, .R = 8, .sources = 2, .readers = 1}, GetParam());
}

// The sums are the same, rounded once.
TEST_P(SelectiveScanCuda, SumsOverChannelsInTheComputeType) {
  for (const int sources : {0, 2}) {
    const Case exact{.B = 2, .T = 50, .D = 72, .N = 12, .R = 5, .sources = sources, .readers = 1};
    Case rounded = exact;
    rounded.rounded = true;
    expect_twins_agree(rounded, GetParam());
    const Results whole = compute(exact, Device::cuda(0), GetParam()), less = compute(rounded, Device::cuda(0), GetParam());
    std::vector<float> expected = whole.at("ddbc");
    for (float& value : expected) value = GetParam() == DType::bf16 ? static_cast<float>(BFloat16(value)) : value;
    EXPECT_TRUE(oracle::same_bits(less.at("ddbc"), expected)) << rounded.name(GetParam());
  }
}

// A step whose gradients are not finite has to be noticed: what is not finite on the CPU is not on the GPU. There more may
// not be, for pairs of tokens share an exponent on their way.
TEST_P(SelectiveScanCuda, NonFiniteNumbersComeThrough) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const std::string poisoned : {"dout", "z", "own.u", "own.dt", "source0.u", "source0.dt", "gate", "reader0.q"}) {
    for (const float poison : {nan, infinity, -infinity}) {
      Case c{.B = 1, .T = 50, .D = 72, .N = 16, .R = 4, .sources = 1, .readers = 1};
      c.poisoned = poisoned;
      c.poison = poison;
      SCOPED_TRACE(c.name(GetParam()));
      const Results expected = compute(c, Device::cpu(), GetParam()), actual = compute(c, Device::cuda(0), GetParam());
      std::size_t poisoned_elements = 0;
      for (const auto& [name, values] : expected) {
        std::size_t lost = 0;
        for (std::size_t i = 0; i < values.size(); ++i) {
          if (std::isfinite(values[i])) continue;
          ++poisoned_elements;
          if (std::isfinite(actual.at(name)[i])) ++lost;
        }
        EXPECT_EQ(lost, 0u) << name;
      }
      if (std::isnan(poison)) {
        EXPECT_GT(poisoned_elements, 0u);
      }
    }
  }
}

TEST_P(SelectiveScanCuda, SequenceOf65536) {
  expect_twins_agree({.B = 1, .T = 65536, .D = 8, .N = 16, .R = 4, .sources = 1, .readers = 1}, GetParam());
}

INSTANTIATE_TEST_SUITE_P(ComputeTypes, SelectiveScanCuda, testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

}  // namespace
}  // namespace dm
