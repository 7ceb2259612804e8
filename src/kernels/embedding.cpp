#include "kernels/embedding.h"

#include "base/assert.h"
#include "kernels/cpu/implementations.h"

namespace plait::kernels {

void embed(const Context& context, const EmbeddingTable& table, std::span<const int32_t> token_ids, Rows y) {
  PLAIT_ASSERT(std::ssize(token_ids) == y.rows, "embed: one row of y per token");
  PLAIT_ASSERT(table.dtype == DType::kF32 || table.dtype == DType::kBF16, "embed: the table is float32 or bfloat16");
  operations_of(context).embed(context, table, token_ids, y);
}

}  // namespace plait::kernels
