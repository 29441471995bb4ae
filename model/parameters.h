// The parameters of a DenseMamba by name: shape, cut, initialiser, decay. The one place that knows them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "parallel/shard.h"
#include "runtime/tensor.h"

namespace dm {

/// How the elements of a parameter start. Each is a pure function of (seed, name, global index), so no grid changes the
/// model.
struct Initializer {
  enum class Kind : std::uint8_t {
    constant,   ///< scale
    normal,     ///< scale · N(0, 1)
    uniform,    ///< U(−scale, scale)
    log_state,  ///< log(1 + column): A_log, so that A = −1 … −N (S4D-real; Mamba, section 3.6)
    dt_bias,    ///< softplus⁻¹(Δ), Δ log-uniform in [1e-3, 1e-1] (Mamba, section 3.6)
  };
  Kind kind = Kind::constant;
  float scale = 0;
};

struct ParameterSpec {
  std::string name;  ///< That of the public Mamba checkpoints; the dense gate's are ours.
  Shape shape;       ///< Global.
  Shard shard;       ///< Over the tensor group.
  Initializer init;
  bool decay = false;  ///< Takes part in weight decay.
  int block = 0;       ///< 0 embedding, 1 … L the matrices of a layer, L + 1 all else: the unit of gradient reduction.
};

/// "backbone.layers.3.mixer.": the prefix of a layer's mixer parameters.
std::string mixer_prefix(std::int64_t layer);

/// The block of everything that is no operand of a matrix product: norms, convolutions, biases, A_log and D of all layers.
/// Few in number and kept in float32 whatever the compute dtype.
inline int small_block(const ModelConfig& config) {
  return static_cast<int>(config.layers) + 1;
}

/// All parameters of `config` (resolved), ordered by block. Gates exist in layers ≥ 1 when dense_depth > 0; fc2 starts at
/// zero, so that training starts as plain Mamba. No decay on A_log, D, norms and biases.
std::vector<ParameterSpec> parameter_specs(const ModelConfig& config);

}  // namespace dm
