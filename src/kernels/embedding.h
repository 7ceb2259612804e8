// Token embedding lookup.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"
#include "tensor/dtype.h"
#include "tensor/matrix.h"

namespace plait::kernels {

// Rows of a vocabulary, or of the part of one that a rank holds.
struct EmbeddingTable {
  const void* data = nullptr;  // [ids, width] float32 or bfloat16, row-major
  DType dtype = DType::kBF16;
  int64_t first_id = 0;  // of the rows that are held
  int64_t ids = 0;

  bool holds(int64_t id) const { return id >= first_id && id < first_id + ids; }
};

// y[t] = the row of token_ids[t]; zeros if the table does not hold it, so that the parts of all ranks add up.
// y: [tokens, width]
void embed(const Context& context, const EmbeddingTable& table, std::span<const int32_t> token_ids, Rows y);

}  // namespace plait::kernels
