#include "tensor/weight_source.h"

#include "base/assert.h"

namespace plait {
namespace {

template <typename T>
T load(const std::byte* data, int64_t index) {
  T value;
  std::memcpy(&value, data + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

float element(DType dtype, const std::byte* data, int64_t index) {
  switch (dtype) {
    case DType::kF32:
      return load<float>(data, index);
    case DType::kBF16:
      return std::bit_cast<float>(static_cast<uint32_t>(load<uint16_t>(data, index)) << 16);
    case DType::kF16:
      return half_to_float(load<uint16_t>(data, index));
    case DType::kF8E4M3:
      return e4m3_to_float(load<uint8_t>(data, index));
    default:
      PLAIT_ASSERT(false, "not a weight's dtype");
      return 0;
  }
}

// The value of every e4m3 byte.
const std::array<float, 256>& e4m3_values() {
  static const std::array<float, 256> values = [] {
    std::array<float, 256> result;
    for (size_t byte = 0; byte < result.size(); ++byte) result[byte] = e4m3_to_float(static_cast<uint8_t>(byte));
    return result;
  }();
  return values;
}

}  // namespace

WeightSource WeightSource::slice(int64_t row_begin, int64_t row_count, int64_t col_begin, int64_t col_count) const {
  PLAIT_ASSERT(row_begin >= 0 && row_count >= 0 && row_begin + row_count <= rows, "slice: rows outside the source");
  PLAIT_ASSERT(col_begin >= 0 && col_count >= 0 && col_begin + col_count <= cols, "slice: columns outside the source");
  WeightSource part = *this;
  part.data = row(row_begin) + col_begin * size_of(dtype);
  part.rows = row_count;
  part.cols = col_count;
  part.first_row += row_begin;
  part.first_col += col_begin;
  part.stored_cols = stride();
  return part;
}

const std::byte* WeightSource::scale_row(int64_t i) const {
  const int64_t grid_cols = (stride() + block - 1) / block;
  const int64_t index = (first_row + i) / block * grid_cols + first_col / block;
  return scales + index * static_cast<int64_t>(sizeof(float));
}

float WeightSource::at(int64_t i, int64_t j) const {
  float value = element(dtype, row(i), j);
  if (scales) value *= load<float>(scale_row(i), (first_col % block + j) / block);
  return value;
}

void WeightSource::decode_row(int64_t i, float* out) const {
  const std::byte* from = row(i);
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, from, static_cast<size_t>(cols) * sizeof(float));
      break;
    case DType::kF8E4M3: {
      const auto& values = e4m3_values();
      for (int64_t j = 0; j < cols; ++j) out[j] = values[static_cast<uint8_t>(from[j])];
      break;
    }
    case DType::kBF16:
      for (int64_t j = 0; j < cols; ++j) out[j] = element(DType::kBF16, from, j);
      break;
    default:
      for (int64_t j = 0; j < cols; ++j) out[j] = element(dtype, from, j);
      break;
  }
  if (!scales) return;
  const std::byte* grid = scale_row(i);
  const int64_t offset = first_col % block;  // of column 0 in its block
  for (int64_t begin = 0, b = 0; begin < cols; ++b) {
    const int64_t end = std::min((b + 1) * block - offset, cols);
    const auto scale = load<float>(grid, b);
    for (; begin < end; ++begin) out[begin] *= scale;
  }
}

}  // namespace plait
