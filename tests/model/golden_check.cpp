// golden_check [--tensor p] [--device cuda [--dtype bfloat16]] FILE...: compares logits, loss, every gradient and recurrent
// logits with files of known results.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "model/decoder.h"
#include "model/language_model.h"
#include "parallel/grid.h"
#include "runtime/copy.h"
#include "runtime/safetensors.h"

namespace dm {
namespace {

constexpr int kSkipped = 77;  // SKIP_RETURN_CODE of tests/CMakeLists.txt

/// Largest relative errors: of logits, loss and recurrent logits, and of every gradient in relative norm. bfloat16 keeps 8
/// bits of every activation and matrix: 3e-2 is a few roundings of each layer; a wrong sum is off by tens of per cent.
struct Tolerance {
  double values;
  double gradients;
};
constexpr Tolerance kCpu{1e-5, 1e-4}, kCuda{1e-4, 1e-4}, kBFloat16{3e-2, 8e-2};

/// Σ (a − b)² and Σ b² over everything compared, over all ranks in the end.
struct Difference {
  double squared_error = 0;
  double squared_norm = 0;

  void add(float actual, float expected) {
    const double error = static_cast<double>(actual) - static_cast<double>(expected);
    squared_error += error * error;
    squared_norm += static_cast<double>(expected) * static_cast<double>(expected);
  }
  /// ‖a − b‖ / ‖b‖ over the group; 0 / 0 is 0 (a gradient that is zero on both sides). Collective.
  double relative(Communicator& group) const {
    float sums[2] = {static_cast<float>(squared_error), static_cast<float>(squared_norm)};
    Stream host(Device::cpu());
    group.all_reduce(host, Tensor::of(sums, {2}));
    if (sums[0] == 0) return 0;
    return std::sqrt(static_cast<double>(sums[0]) / static_cast<double>(sums[1]));
  }
};

ModelConfig config_of(const SafetensorsFile& file) {
  const auto number = [&](const char* key) { return std::stoll(file.metadata().at(key)); };
  ModelConfig config;
  config.layers = number("layers");
  config.d_model = number("d_model");
  config.expand = number("d_inner") / number("d_model");
  config.d_state = number("d_state");
  config.d_conv = number("d_conv");
  config.dt_rank = number("dt_rank");
  config.dense_depth = number("dense_depth");
  config.gate_rank = number("gate_rank");
  config.vocabulary = number("vocab");
  config.resolve();
  return config;
}

/// Calls visit(local element, global element) for the elements of `entry` on this rank that exist in a file tensor of `rows`
/// rows (files have no vocabulary padding).
template <class Visit>
void for_each_element(const ParameterStore& store, const ParameterStore::Entry& entry, std::int64_t rows,
                      const Visit& visit) {
  const std::int64_t columns = as_matrix(entry.spec.shape)[1];
  std::int64_t local = 0;
  for (const Rectangle& part : global_rectangles(entry.spec.shape, entry.spec.shard, store.place().tensor_rank,
                                                 store.place().tensor_size, 0, entry.range.size)) {
    for (std::int64_t row = part.row; row < part.row + part.rows; ++row) {
      for (std::int64_t column = part.column; column < part.column + part.columns; ++column, ++local) {
        if (row < rows) visit(local, row * columns + column);
      }
    }
  }
}

/// One golden file against the model on this rank of a tensor group.
class Check {
 public:
  Check(const std::string& path, const Grid& grid, Device device, DType compute)
      : file_(SafetensorsFile::open(path)),
        config_(config_of(file_)),
        tensor_(*grid.tensor),
        host_(grid.tensor_on_host()),
        stream_(device),
        store_(parameter_specs(config_), {tensor_.rank(), tensor_.size(), 0, 1}, device, report_, compute),
        model_(config_, store_, tensor_),
        shape_(file_.find("tokens").shape),
        tolerance_(compute == DType::bf16            ? kBFloat16
                   : device.kind == DeviceKind::cuda ? kCuda
                                                     : kCpu) {
    for (const ParameterStore::Entry& entry : store_.entries()) {
      const std::vector<float> values = file_.read(entry.spec.name);
      std::vector<float> local(static_cast<std::size_t>(entry.range.size));
      for_each_element(store_, entry, file_.find(entry.spec.name).shape[0], [&](std::int64_t to, std::int64_t from) {
        local[static_cast<std::size_t>(to)] = values[static_cast<std::size_t>(from)];
      });
      upload(local, store_.parameter(entry.spec.name).value);
    }
    for (const char* name : {"tokens", "targets"}) {
      const std::vector<std::int32_t> ids = file_.read<std::int32_t>(name);
      Buffer& buffer = name[1] == 'o' ? tokens_ : targets_;
      buffer = Buffer(name, shape_.numel() * size_of(DType::i32), device, report_);
      copy(stream_, Tensor::of(const_cast<std::int32_t*>(ids.data()), shape_), buffer.tensor(shape_, DType::i32));
      stream_.synchronize();
    }
  }

  /// Prints a line and returns whether everything is within tolerance.
  bool run(const char* path) {
    const double logits = logits_error(), loss = train(Recompute::none);
    std::string worst;
    double gradient = 0;
    worse_gradient(gradient, worst);
    for (const Recompute recompute : {Recompute::selective, Recompute::block}) {
      train(recompute);
      worse_gradient(gradient, worst);
    }
    const double recurrent = recurrent_error();
    const bool good = logits <= tolerance_.values && loss <= tolerance_.values && recurrent <= tolerance_.values &&
                      gradient <= tolerance_.gradients;
    if (tensor_.rank() == 0) {
      std::printf("%s %s: %s, tensor %d, logits %.2e, loss %.2e, gradients %.2e (%s), recurrent logits %.2e\n",
                  good ? "ok" : "FAIL", path, name_of(stream_.device()).c_str(), tensor_.size(), logits, loss, gradient,
                  worst.c_str(), recurrent);
    }
    return good;
  }

 private:
  Tensor tokens() const { return tokens_.tensor(shape_, DType::i32); }
  Tensor targets() const { return targets_.tensor(shape_, DType::i32); }

  /// Between host vectors and float32 or rounded tensors of the device; waits.
  void upload(std::vector<float>& values, const Tensor& to) {
    const Shape flat{to.numel()};
    if (to.dtype() == DType::f32) {
      copy(stream_, Tensor::of(values.data(), flat), to);
    } else {
      std::vector<BFloat16> rounded(values.begin(), values.end());
      copy(stream_, Tensor::of(rounded.data(), flat), to);
      stream_.synchronize();
    }
    stream_.synchronize();
  }
  std::vector<float> download(const Tensor& from) {
    std::vector<float> values(static_cast<std::size_t>(from.numel()));
    copy(stream_, from, Tensor::of(values.data(), {from.numel()}));
    stream_.synchronize();
    return values;
  }
  Tensor device_floats(Buffer& owner, Shape shape) {
    owner = Buffer("results", shape.numel() * size_of(DType::f32), stream_.device(), report_);
    return owner.tensor(shape, DType::f32);
  }

  /// An arena large enough for `work`, which is run once on a plan.
  template <class Work>
  void with_arena(const Work& work) {
    Arena plan(stream_.device().kind);
    Stream planning(Device::plan(stream_.device().kind));
    work(planning, plan);
    Arena arena(Buffer("activations", plan.peak(), stream_.device(), report_));
    work(stream_, arena);
    stream_.synchronize();
  }

  /// Of this rank's columns [B, T, V/p] against the file's [B, T, V].
  double columns_error(const std::vector<float>& local, const std::vector<float>& expected) {
    const std::int64_t rows = shape_.numel(), columns = model_.vocabulary().rows(), first = tensor_.rank() * columns;
    const std::int64_t valid = std::clamp<std::int64_t>(config_.vocabulary - first, 0, columns);
    Difference difference;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t column = 0; column < valid; ++column) {
        difference.add(local[static_cast<std::size_t>(row * columns + column)],
                       expected[static_cast<std::size_t>(row * config_.vocabulary + first + column)]);
      }
    }
    return difference.relative(host_);
  }

  double logits_error() {
    Buffer owner;
    const Tensor out = device_floats(owner, {shape_[0], shape_[1], model_.vocabulary().rows()});
    with_arena([&](Stream& stream, Arena& arena) { model_.logits(stream, arena, tokens(), out); });
    return columns_error(download(out), file_.read("logits"));
  }

  double train(Recompute recompute) {
    Buffer owner;
    const Tensor sum = device_floats(owner, {1});
    const auto rows = static_cast<float>(shape_.numel());
    with_arena([&](Stream& stream, Arena& arena) {
      model_.forward_backward(stream, arena, tokens(), targets(), 1.0f / rows, {.recompute = recompute, .loss_chunk = 33},
                              sum, {});
    });
    const float loss_sum = download(sum)[0];
    const float expected = file_.read("loss")[0];
    return static_cast<double>(std::abs(loss_sum / rows - expected) / std::abs(expected));
  }

  /// Raises `worst` to the largest relative error of a gradient, and names it; NaN is the largest.
  void worse_gradient(double& worst, std::string& worst_name) {
    for (const ParameterStore::Entry& entry : store_.entries()) {
      const std::string name = "grad." + entry.spec.name;
      const std::vector<float> expected = file_.read(name);
      const std::vector<float> local = download(store_.parameter(entry.spec.name).gradient);
      Difference difference;
      for_each_element(store_, entry, file_.find(name).shape[0], [&](std::int64_t mine, std::int64_t global) {
        difference.add(local[static_cast<std::size_t>(mine)], expected[static_cast<std::size_t>(global)]);
      });
      const double error = difference.relative(host_);
      if (error <= worst || std::isnan(worst)) continue;
      worst = error;
      worst_name = entry.spec.name;
    }
  }

  double recurrent_error() {
    const std::int64_t B = shape_[0], T = shape_[1], columns = model_.vocabulary().rows();
    Decoder decoder(model_, B, 1, stream_.device(), report_);
    Buffer step_owner, column("tokens", B * size_of(DType::i32), stream_.device(), report_);
    const Tensor step = device_floats(step_owner, {B, 1, columns}), ids = column.tensor({B, 1}, DType::i32);
    std::vector<float> all(static_cast<std::size_t>(B * T * columns));
    for (std::int64_t t = 0; t < T; ++t) {
      for (std::int64_t b = 0; b < B; ++b) copy(stream_, tokens().flat(b * T + t, 1), ids.flat(b, 1));
      decoder.feed(stream_, ids, step);
      const std::vector<float> logits = download(step);
      for (std::int64_t b = 0; b < B; ++b) {
        std::copy_n(&logits[static_cast<std::size_t>(b * columns)], columns,
                    &all[static_cast<std::size_t>((b * T + t) * columns)]);
      }
    }
    return columns_error(all, file_.read("recurrent_logits"));
  }

  SafetensorsFile file_;
  ModelConfig config_;
  Communicator& tensor_;
  Communicator& host_;  // the same group for host tensors
  MemoryReport report_;
  Stream stream_;
  ParameterStore store_;
  LanguageModel model_;
  Buffer tokens_, targets_;
  Shape shape_;
  Tolerance tolerance_;
};

int check_files(int argc, char** argv) {
  int tensor_size = 1;
  std::string device_name = "cpu", dtype = "float32";
  std::vector<const char*> files;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const bool has_value = i + 1 < argc;
    if (word == "--tensor" && has_value) {
      tensor_size = std::atoi(argv[++i]);
    } else if (word == "--device" && has_value) {
      device_name = argv[++i];
    } else if (word == "--dtype" && has_value) {
      dtype = argv[++i];
    } else {
      files.push_back(argv[i]);
    }
  }
  require(!files.empty(), "usage: golden_check [--tensor p] [--device cpu|cuda] [--dtype float32|bfloat16] FILE...");
  if (device_name == "cuda" && cuda::device_count() < tensor_size) {
    std::printf("skipped: needs a GPU for each of %d ranks, and sees %d\n", tensor_size, cuda::device_count());
    return kSkipped;
  }
  std::unique_ptr<Communicator> world = make_mpi_communicator();
  const Device device = device_name == "cuda" ? Device::cuda(world->rank()) : Device::cpu();  // one node
  const Grid grid = Grid::make(std::move(world), tensor_size, device);
  require(grid.data->size() == 1, "run golden_check on exactly --tensor ranks");
  bool good = true;
  for (const char* file : files)
    good = Check(file, grid, device, dtype == "bfloat16" ? DType::bf16 : DType::f32).run(file) && good;
  return good ? 0 : 1;
}

}  // namespace
}  // namespace dm

int main(int argc, char** argv) {
  const dm::MpiEnvironment mpi(&argc, &argv);
  try {
    return dm::check_files(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "golden_check: %s\n", error.what());
    dm::make_mpi_communicator()->abort(1);
  }
}
