// golden_check [--tensor p] FILE...: compares logits, loss, every gradient and recurrent logits with files of known results.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "model/decoder.h"
#include "model/language_model.h"
#include "parallel/grid.h"
#include "runtime/safetensors.h"

namespace dm {
namespace {

constexpr double kValueTolerance = 1e-5;     // logits, loss and recurrent logits
constexpr double kGradientTolerance = 1e-4;  // every gradient, in relative norm

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
  double relative(Stream& stream, Communicator& group) const {
    float sums[2] = {static_cast<float>(squared_error), static_cast<float>(squared_norm)};
    group.all_reduce(stream, Tensor::of(sums, {2}));
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
  Check(const std::string& path, Communicator& tensor)
      : file_(SafetensorsFile::open(path)),
        config_(config_of(file_)),
        tensor_(tensor),
        store_(parameter_specs(config_), {tensor.rank(), tensor.size(), 0, 1}, Device::cpu(), report_),
        model_(config_, store_, tensor),
        tokens_(file_.read<std::int32_t>("tokens")),
        targets_(file_.read<std::int32_t>("targets")),
        shape_(file_.find("tokens").shape) {
    for (const ParameterStore::Entry& entry : store_.entries()) {
      const std::vector<float> values = file_.read(entry.spec.name);
      float* local = store_.parameter(entry.spec.name).value.as<float>();
      for_each_element(store_, entry, file_.find(entry.spec.name).shape[0],
                       [&](std::int64_t to, std::int64_t from) { local[to] = values[static_cast<std::size_t>(from)]; });
    }
  }

  /// Prints a line and returns whether everything is within tolerance.
  bool run(const char* path) {
    const double logits = logits_error(), loss = train(Recompute::none);
    std::string worst;
    double gradient = 0;
    worse_gradient(gradient, worst);
    train(Recompute::block);
    worse_gradient(gradient, worst);
    const double recurrent = recurrent_error();
    const bool good = logits <= kValueTolerance && loss <= kValueTolerance && recurrent <= kValueTolerance &&
                      gradient <= kGradientTolerance;
    if (tensor_.rank() == 0) {
      std::printf("%s %s: tensor %d, logits %.2e, loss %.2e, gradients %.2e (%s), recurrent logits %.2e\n",
                  good ? "ok" : "FAIL", path, tensor_.size(), logits, loss, gradient, worst.c_str(), recurrent);
    }
    return good;
  }

 private:
  Tensor tokens() { return Tensor::of(tokens_.data(), shape_); }
  Tensor targets() { return Tensor::of(targets_.data(), shape_); }

  /// An arena large enough for `work`, which is run once on a plan.
  template <class Work>
  void with_arena(const Work& work) {
    Arena plan;
    Stream planning(Device::plan());
    work(planning, plan);
    Arena arena(Buffer("activations", plan.peak(), Device::cpu(), report_));
    work(stream_, arena);
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
    return difference.relative(stream_, tensor_);
  }

  double logits_error() {
    std::vector<float> logits(static_cast<std::size_t>(shape_.numel() * model_.vocabulary().rows()));
    const Tensor out = Tensor::of(logits.data(), {shape_[0], shape_[1], model_.vocabulary().rows()});
    with_arena([&](Stream& stream, Arena& arena) { model_.logits(stream, arena, tokens(), out); });
    return columns_error(logits, file_.read("logits"));
  }

  double train(Recompute recompute) {
    std::fill_n(store_.gradients().as<float>(), store_.gradients().numel(), 0.0f);
    float loss_sum = 0;
    const auto rows = static_cast<float>(shape_.numel());
    with_arena([&](Stream& stream, Arena& arena) {
      model_.forward_backward(stream, arena, tokens(), targets(), 1.0f / rows, {recompute, /*loss_chunk=*/33},
                              Tensor::of(&loss_sum, {1}), {});
    });
    const float expected = file_.read("loss")[0];
    return static_cast<double>(std::abs(loss_sum / rows - expected) / std::abs(expected));
  }

  /// Raises `worst` to the largest relative error of a gradient, and names it; NaN is the largest.
  void worse_gradient(double& worst, std::string& worst_name) {
    for (const ParameterStore::Entry& entry : store_.entries()) {
      const std::string name = "grad." + entry.spec.name;
      const std::vector<float> expected = file_.read(name);
      const float* local = store_.parameter(entry.spec.name).gradient.as<float>();
      Difference difference;
      for_each_element(store_, entry, file_.find(name).shape[0], [&](std::int64_t mine, std::int64_t global) {
        difference.add(local[mine], expected[static_cast<std::size_t>(global)]);
      });
      const double error = difference.relative(stream_, tensor_);
      if (error <= worst || std::isnan(worst)) continue;
      worst = error;
      worst_name = entry.spec.name;
    }
  }

  double recurrent_error() {
    const std::int64_t B = shape_[0], T = shape_[1], columns = model_.vocabulary().rows();
    Decoder decoder(model_, B, 1, Device::cpu(), report_);
    std::vector<float> all(static_cast<std::size_t>(B * T * columns)), step(static_cast<std::size_t>(B * columns));
    std::vector<std::int32_t> column(static_cast<std::size_t>(B));
    for (std::int64_t t = 0; t < T; ++t) {
      for (std::int64_t b = 0; b < B; ++b)
        column[static_cast<std::size_t>(b)] = tokens_[static_cast<std::size_t>(b * T + t)];
      decoder.feed(stream_, Tensor::of(column.data(), {B, 1}), Tensor::of(step.data(), {B, 1, columns}));
      for (std::int64_t b = 0; b < B; ++b)
        std::copy_n(&step[static_cast<std::size_t>(b * columns)], columns,
                    &all[static_cast<std::size_t>((b * T + t) * columns)]);
    }
    return columns_error(all, file_.read("recurrent_logits"));
  }

  SafetensorsFile file_;
  ModelConfig config_;
  Communicator& tensor_;
  MemoryReport report_;
  ParameterStore store_;
  LanguageModel model_;
  std::vector<std::int32_t> tokens_, targets_;
  Shape shape_;
  Stream stream_{Device::cpu()};
};

int check_files(int argc, char** argv) {
  int tensor_size = 1;
  std::vector<const char*> files;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--tensor") == 0 && i + 1 < argc) {
      tensor_size = std::atoi(argv[++i]);
    } else {
      files.push_back(argv[i]);
    }
  }
  require(!files.empty(), "usage: golden_check [--tensor p] FILE...");
  Grid grid = Grid::make(make_mpi_communicator(), tensor_size);
  require(grid.data->size() == 1, "run golden_check on exactly --tensor ranks");
  bool good = true;
  for (const char* file : files) good = Check(file, *grid.tensor).run(file) && good;
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
