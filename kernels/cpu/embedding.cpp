// The embedding on the CPU: rows copied and rows added, token after token.
#include "kernels/embedding.h"

#include <cstring>

namespace dm::cpu {

void embedding_forward(Stream&, const Tensor& tokens, const Tensor& table, std::int64_t first_row, const Tensor& out) {
  const std::int64_t columns = table.size(1);
  const auto bytes = static_cast<std::size_t>(columns) * sizeof(float);
  for (std::int64_t i = 0; i < tokens.numel(); ++i) {
    const std::int64_t row = tokens.as<std::int32_t>()[i] - first_row;
    float* to = out.as<float>() + i * columns;
    if (row >= 0 && row < table.size(0)) {
      std::memcpy(to, table.as<float>() + row * columns, bytes);
    } else {
      std::memset(to, 0, bytes);
    }
  }
}

void embedding_backward(Stream&, const Tensor& tokens, const Tensor& dout, std::int64_t first_row, const Tensor& dtable) {
  const std::int64_t columns = dtable.size(1);
  for (std::int64_t i = 0; i < tokens.numel(); ++i) {
    const std::int64_t row = tokens.as<std::int32_t>()[i] - first_row;
    if (row < 0 || row >= dtable.size(0)) continue;
    const float* from = dout.as<float>() + i * columns;
    float* to = dtable.as<float>() + row * columns;
    for (std::int64_t c = 0; c < columns; ++c) to[c] += from[c];
  }
}

}  // namespace dm::cpu
