// What linear, grouped_linear and head_linear have in common: a list of products with strided rows.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/linear.h"

namespace plait::kernels {

// y[i] = x[i] W^T for i in [0, rows). Row i of x starts at x + i * x_stride, row i of y at y + i * y_stride. All
// weights of one call have the same shape and format; products write different rows.
struct Product {
  const PackedMatrix* weight = nullptr;
  const float* x = nullptr;
  float* y = nullptr;
  int64_t rows = 0;
  int64_t x_stride = 0;
  int64_t y_stride = 0;
};

// Inputs per scale of a kF8Block matrix.
constexpr int64_t kScaleInputs = 128;

// Workspace slots of the products (context.h: operations use 16..31).
constexpr int kSlotProducts = 16;
constexpr int kSlotPackedX = 17;
constexpr int kSlotThreadScratch = 18;
constexpr int kSlotParts = 19;

}  // namespace plait::kernels
