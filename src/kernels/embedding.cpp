#include "kernels/embedding.h"

#include "base/assert.h"
#include "kernels/cpu/implementations.h"

namespace plait::kernels {

void embed(const Context& context, const void* table, DType table_dtype, std::span<const int32_t> token_ids, Rows y) {
  PLAIT_ASSERT(std::ssize(token_ids) == y.rows, "embed: one row of y per token");
  PLAIT_ASSERT(table_dtype == DType::kF32 || table_dtype == DType::kBF16, "embed: the table is float32 or bfloat16");
  implementation_of(context, reference::embed, fast::embed)(context, table, table_dtype, token_ids, y);
}

}  // namespace plait::kernels
