// The checks of the embedding lookup and of its gradient.
#include "kernels/embedding.h"

#include "kernels/check.h"
#include "kernels/dispatch.h"

namespace dm {

void embedding_forward(Stream& stream, const Tensor& tokens, const Tensor& table, std::int64_t first_row,
                       const Tensor& out) {
  const ArgumentCheck check(stream, "embedding_forward");
  check.that(table.shape().rank() == 2, "table must be [vocabulary rows, channels]");
  check.elements("tokens", tokens, tokens.numel(), DType::i32);
  check.compute("table", table, table.shape());
  check.rows("out", out, tokens.numel(), table.size(1), DType::f32);
  dispatch(stream, "embedding_forward", DM_TWINS(embedding_forward), tokens, table, first_row, out);
}

void embedding_backward(Stream& stream, const Tensor& tokens, const Tensor& dout, std::int64_t first_row,
                        const Tensor& dtable) {
  const ArgumentCheck check(stream, "embedding_backward");
  check.that(dtable.shape().rank() == 2, "dtable must be [vocabulary rows, channels]");
  check.elements("tokens", tokens, tokens.numel(), DType::i32);
  check.tensor("dtable", dtable, dtable.shape(), DType::f32);
  check.rows("dout", dout, tokens.numel(), dtable.size(1), DType::f32);
  dispatch(stream, "embedding_backward", DM_TWINS(embedding_backward), tokens, dout, first_row, dtable);
}

}  // namespace dm
