// Products with weight matrices, y = x W^T, dense and grouped by expert.
//
// A PackedMatrix belongs to the implementation it was made for: the fast one stores panels that its instructions like,
// the reference keeps plain rows. Packing may run on many threads at once as long as they write different rows.
#pragma once

#include <cstdint>
#include <span>

#include "base/error.h"
#include "kernels/context.h"
#include "tensor/buffer.h"
#include "tensor/matrix.h"
#include "tensor/weight_source.h"

namespace plait::kernels {

enum class WeightFormat : uint8_t {
  kF32,
  kBF16,
  kF8Block,  // e4m3 with one float32 scale per 128 inputs and 128 outputs; stays e4m3 in memory
};

// [out_features, in_features]
class PackedMatrix {
 public:
  PackedMatrix() = default;
  PackedMatrix(Implementation implementation, WeightFormat format, int64_t out_features, int64_t in_features);

  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }
  WeightFormat format() const { return format_; }
  Implementation implementation() const { return implementation_; }
  // Bytes of weights and scales that one product with this matrix reads.
  size_t size_bytes() const { return data_.size_bytes() + scales_.size_bytes(); }

  // Rows [first_row, first_row + source.rows) become the rows of `source`. A BF16 or F32 matrix takes any source dtype
  // (FP8 sources are dequantised); a kF8Block matrix takes e4m3 sources with scales only. Concatenated matrices (gate
  // and up) are packed part by part.
  Status pack_rows(int64_t first_row, const WeightSource& source);
  // Element (i, j) as stored, scale included. For tests.
  float at(int64_t i, int64_t j) const;

  // Storage, for the implementations.
  Buffer& data() { return data_; }
  const Buffer& data() const { return data_; }
  Buffer& scales() { return scales_; }
  const Buffer& scales() const { return scales_; }

 private:
  Implementation implementation_ = Implementation::kReference;
  WeightFormat format_ = WeightFormat::kF32;
  int64_t out_features_ = 0;
  int64_t in_features_ = 0;
  Buffer data_;
  Buffer scales_;
};

// x: [tokens, in_features], y: [tokens, out_features]. In-place use (x == y) is not possible.
void linear(const Context& context, ConstRows x, const PackedMatrix& weight, Rows y);

// One product per group over consecutive rows: y[rows of g] = x[rows of g] W_g^T. All weights have the same shape and
// format. Rows that no group names are neither read nor written.
struct RowGroup {
  const PackedMatrix* weight = nullptr;
  int64_t row_begin = 0;
  int64_t row_count = 0;
};
void grouped_linear(const Context& context, ConstRows x, std::span<const RowGroup> groups, Rows y);

// One small matrix per attention head: y[t, h] = x[t, h] W_h^T.
// x: [tokens, heads, in_features], y: [tokens, heads, out_features]; strides in floats.
struct HeadRows {
  float* data = nullptr;
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t width = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
  float* at(int64_t token, int64_t head) const { return data + token * token_stride + head * head_stride; }
};
void head_linear(const Context& context, HeadRows x, std::span<const PackedMatrix> weights, HeadRows y);

}  // namespace plait::kernels
