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

float WeightSource::at(int64_t i, int64_t j) const {
  float value = element(dtype, data, i * cols + j);
  if (scales) value *= load<float>(scales, (i / block) * ((cols + block - 1) / block) + j / block);
  return value;
}

void WeightSource::decode_row(int64_t i, float* out) const {
  const std::byte* row = data + i * cols * size_of(dtype);
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, row, static_cast<size_t>(cols) * sizeof(float));
      break;
    case DType::kF8E4M3: {
      const auto& values = e4m3_values();
      for (int64_t j = 0; j < cols; ++j) out[j] = values[static_cast<uint8_t>(row[j])];
      break;
    }
    case DType::kBF16:
      for (int64_t j = 0; j < cols; ++j) out[j] = element(DType::kBF16, row, j);
      break;
    default:
      for (int64_t j = 0; j < cols; ++j) out[j] = element(dtype, row, j);
      break;
  }
  if (!scales) return;
  const int64_t blocks = (cols + block - 1) / block;
  for (int64_t b = 0; b < blocks; ++b) {
    const auto scale = load<float>(scales, (i / block) * blocks + b);
    for (int64_t j = b * block; j < std::min((b + 1) * block, cols); ++j) out[j] *= scale;
  }
}

}  // namespace plait
