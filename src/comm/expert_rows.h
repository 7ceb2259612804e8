// Rows of float32 values as an exchange carries them.
//
// Plain functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace plait::comm {

inline constexpr int64_t kScaleGroup = 128;  // values per scale of an e4m3 row

inline int64_t scale_groups(DType payload, int64_t hidden) {
  return payload == DType::kF8E4M3 ? (hidden + kScaleGroup - 1) / kScaleGroup : 0;
}

// in [hidden] -> out [hidden] of payload, scales [scale_groups]. e4m3: scale = the group's largest magnitude / 448.
void encode_row(DType payload, int64_t hidden, const float* in, std::byte* out, float* scales);
void decode_row(DType payload, int64_t hidden, const std::byte* in, const float* scales, float* out);
// sum[i] += weight * row[i], each product rounded before it is added.
void add_weighted_row(int64_t hidden, float weight, const float* row, float* sum);

}  // namespace plait::comm
