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

}  // namespace

float WeightSource::at(int64_t i, int64_t j) const {
  float value = element(dtype, data, i * cols + j);
  if (scales) value *= load<float>(scales, (i / block) * ((cols + block - 1) / block) + j / block);
  return value;
}

void WeightSource::decode_row(int64_t i, float* out) const {
  for (int64_t j = 0; j < cols; ++j) out[j] = at(i, j);
}

}  // namespace plait
