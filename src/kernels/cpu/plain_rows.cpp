#include "kernels/cpu/plain_rows.h"

#include "kernels/cpu/linear_product.h"

namespace plait::kernels {
namespace {

int64_t scale_blocks(int64_t in_features) {
  return (in_features + kScaleInputs - 1) / kScaleInputs;
}

// e4m3_to_float of every byte: the reference decodes a matrix in every product.
const std::array<float, 256>& e4m3_values() {
  static const std::array<float, 256> kValues = [] {
    std::array<float, 256> values{};
    for (size_t byte = 0; byte < values.size(); ++byte) values[byte] = e4m3_to_float(static_cast<uint8_t>(byte));
    return values;
  }();
  return kValues;
}

int64_t element_bytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return 4;
    case WeightFormat::kBF16:
      return 2;
    case WeightFormat::kF8Block:
      return 1;
  }
  return 0;
}

}  // namespace

size_t plain_data_bytes(WeightFormat format, int64_t out_features, int64_t in_features) {
  return static_cast<size_t>(out_features * in_features * element_bytes(format));
}

size_t plain_scale_bytes(WeightFormat format, int64_t out_features, int64_t in_features) {
  if (format != WeightFormat::kF8Block) return 0;
  return static_cast<size_t>(out_features * scale_blocks(in_features)) * sizeof(float);
}

void pack_plain_rows(PackedMatrix& matrix, int64_t first_row, const WeightSource& source) {
  const int64_t in = matrix.in_features(), blocks = scale_blocks(in);
  std::vector<float> decoded(static_cast<size_t>(in));
  for (int64_t i = 0; i < source.rows; ++i) {
    const int64_t row = first_row + i;
    switch (matrix.format()) {
      case WeightFormat::kF32:
        source.decode_row(i, matrix.data().as<float>() + row * in);
        break;
      case WeightFormat::kBF16: {
        source.decode_row(i, decoded.data());
        auto* out = matrix.data().as<BFloat16>() + row * in;
        for (int64_t k = 0; k < in; ++k) out[k] = BFloat16(decoded[static_cast<size_t>(k)]);
        break;
      }
      case WeightFormat::kF8Block:
        std::memcpy(matrix.data().as<std::byte>() + row * in, source.row(i), static_cast<size_t>(in));
        std::memcpy(matrix.scales().as<float>() + row * blocks, source.scale_row(i),
                    static_cast<size_t>(blocks) * sizeof(float));
        break;
    }
  }
}

void decode_plain_row(const PackedMatrix& matrix, int64_t i, float* out) {
  const int64_t in = matrix.in_features();
  switch (matrix.format()) {
    case WeightFormat::kF32:
      std::memcpy(out, matrix.data().as<float>() + i * in, static_cast<size_t>(in) * sizeof(float));
      break;
    case WeightFormat::kBF16: {
      const auto* row = matrix.data().as<BFloat16>() + i * in;
      for (int64_t k = 0; k < in; ++k) out[k] = static_cast<float>(row[k]);
      break;
    }
    case WeightFormat::kF8Block: {
      const auto* row = matrix.data().as<uint8_t>() + i * in;
      const std::array<float, 256>& values = e4m3_values();
      const float* scales = matrix.scales().as<float>() + i * scale_blocks(in);
      for (int64_t k = 0; k < in; ++k) out[k] = values[row[k]] * scales[k / kScaleInputs];
      break;
    }
  }
}

}  // namespace plait::kernels
