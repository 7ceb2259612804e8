// Storage of the reference implementation: rows as in a checkpoint, [out_features, in_features] in the stored format.
// A kF8Block matrix has one scale per row and 128 inputs, so that parts may begin at any row.
#pragma once

#include "base/error.h"
#include "kernels/linear.h"

namespace plait::kernels {

size_t plain_data_bytes(WeightFormat format, int64_t out_features, int64_t in_features);
size_t plain_scale_bytes(WeightFormat format, int64_t out_features, int64_t in_features);
void pack_plain_rows(PackedMatrix& matrix, int64_t first_row, const WeightSource& source);
// Row i as float32, scale included. out: [in_features]
void decode_plain_row(const PackedMatrix& matrix, int64_t i, float* out);

}  // namespace plait::kernels
