// A weight as it lies in a checkpoint, on its way into a packed layout.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace plait {

// A stored matrix [rows, cols] (a vector has rows == 1), or a rectangle of one. If `scales` is set, values are e4m3 and
// must be multiplied by the scale of their block: a row-major float32 grid with one number per block x block elements,
// counted from the corner of the whole stored matrix.
struct WeightSource {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* data = nullptr;    // of element (0, 0)
  const std::byte* scales = nullptr;  // float32, maybe unaligned; of the whole matrix
  int64_t block = 0;
  // Of a rectangle: where it lies in the stored matrix, and how wide that is (0: as wide as this).
  int64_t first_row = 0;
  int64_t first_col = 0;
  int64_t stored_cols = 0;

  // Element (0, 0) is (row_begin, col_begin) of this.
  WeightSource slice(int64_t row_begin, int64_t row_count, int64_t col_begin, int64_t col_count) const;
  WeightSource slice_rows(int64_t row_begin, int64_t row_count) const { return slice(row_begin, row_count, 0, cols); }

  size_t size_bytes() const { return static_cast<size_t>(rows * cols * size_of(dtype)); }
  int64_t stride() const { return stored_cols > 0 ? stored_cols : cols; }  // elements between rows
  const std::byte* row(int64_t i) const { return data + i * stride() * size_of(dtype); }
  // Scales of row i, for the block of column 0 and those after it.
  const std::byte* scale_row(int64_t i) const;
  // Element (i, j) as the number it stands for, scale included. For tests and small tensors; kernels decode rows.
  float at(int64_t i, int64_t j) const;
  // Row i as float32, scale included. out: [cols]
  void decode_row(int64_t i, float* out) const;
};

}  // namespace plait
