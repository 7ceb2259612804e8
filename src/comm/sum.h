// Sums over ranks whose result does not depend on who adds, where or when: always rank 0 + rank 1 + ..., in float32.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "tensor/dtype.h"

namespace plait::comm {

// out[i] = sources[0][i] + sources[1][i] + ..., added in this order in float32 and rounded once to `dtype` (F32 or
// BF16). sources: at least one, `count` elements each; `out` may be one of them. Plain function; any thread.
void sum_in_rank_order(DType dtype, std::span<const std::byte* const> sources, std::byte* out, int64_t count);

}  // namespace plait::comm
