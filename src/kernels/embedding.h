// Token embedding lookup.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"
#include "tensor/dtype.h"
#include "tensor/matrix.h"

namespace plait::kernels {

// table: [vocab, width] float32 or bfloat16, row-major; token_ids: [tokens], each in [0, vocab); y: [tokens, width]
void embed(const Context& context, const void* table, DType table_dtype, std::span<const int32_t> token_ids, Rows y);

}  // namespace plait::kernels
