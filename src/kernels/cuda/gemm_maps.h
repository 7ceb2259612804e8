// The operands of a product as the copy engine sees them.
#pragma once

#include "kernels/cuda/gemm.h"

namespace plait::cuda {

// Of k in a stage of a kernel, and in a copy: what the swizzled layout of tiles allows. As in device/.
inline constexpr int64_t kBlockBytes = 128;
inline constexpr int64_t kMostSharedBytes = 227 << 10;  // that a block can have on sm_90

struct GemmMaps {
  TensorMap a = {};         // [rows, k] as bytes; kBatched: [rows, all groups and what is between them]
  TensorMap b = {};         // [groups * n, k] as bytes
  TensorMap a_scales = {};  // kFp8: [ceil(k / 128), scale_rows], of each group for kMasked
};

// Rows that one copy brings: of 128 bytes each, and numbers of a row of scales.
struct GemmBoxes {
  int64_t a_rows = 0;
  int64_t b_rows = 0;
  int64_t scale_rows = 0;
};

// kInvalid: an operand that is not aligned to 16 bytes. Touches no device memory.
Result<GemmMaps> gemm_maps(const Driver& driver, const GemmShape& shape, const GemmOperands& operands,
                           const GemmBoxes& boxes);

}  // namespace plait::cuda
