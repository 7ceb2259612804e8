// A weight as it lies in a checkpoint, on its way into a packed layout.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace plait {

// A stored matrix [rows, cols] (a vector has rows == 1). If `scales` is set, values are e4m3 and element (i, j) must be
// multiplied by scales[i / block, j / block], a row-major float32 grid [ceil(rows/block), ceil(cols/block)].
struct WeightSource {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* data = nullptr;
  const std::byte* scales = nullptr;  // float32, maybe unaligned
  int64_t block = 0;

  size_t size_bytes() const { return static_cast<size_t>(rows * cols * size_of(dtype)); }
  // Element (i, j) as the number it stands for, scale included. For tests and small tensors; kernels decode rows.
  float at(int64_t i, int64_t j) const;
  // Row i as float32, scale included. out: [cols]
  void decode_row(int64_t i, float* out) const;
};

}  // namespace plait
