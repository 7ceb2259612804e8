// Element types of tensors and the scalar conversions between them.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace plait {

enum class DType : uint8_t {
  kF32,
  kBF16,
  kF16,
  kF8E4M3,
  kF8E5M2,
  kF8E8M0,
  kF64,
  kI8,
  kU8,
  kI16,
  kU16,
  kI32,
  kU32,
  kI64,
  kU64,
  kBool
};

int64_t size_of(DType dtype);           // bytes of one element
std::string_view name_of(DType dtype);  // safetensors' spelling: "BF16", "F8_E4M3"
bool parse_dtype(std::string_view safetensors_name, DType& dtype);

// The upper half of a float32.
struct BFloat16 {
  uint16_t bits = 0;
  BFloat16() = default;
  // Round to nearest even; NaN stays NaN.
  explicit BFloat16(float value) {
    const auto word = std::bit_cast<uint32_t>(value);
    if ((word & 0x7fffffff) > 0x7f800000)
      bits = static_cast<uint16_t>((word >> 16) | 0x40);
    else
      bits = static_cast<uint16_t>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

float half_to_float(uint16_t bits);   // IEEE binary16
uint16_t float_to_half(float value);  // round to nearest even

// e4m3: sign 1, exponent 4 (bias 7), mantissa 3; no infinities, 0x7f and 0xff are NaN, the largest value is 448.
float e4m3_to_float(uint8_t bits);
uint8_t float_to_e4m3(float value);  // round to nearest even, saturating at 448

}  // namespace plait
