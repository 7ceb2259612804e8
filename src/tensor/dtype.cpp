#include "tensor/dtype.h"

namespace plait {
namespace {

struct DTypeRow {
  DType dtype;
  std::string_view name;
  int64_t bytes;
};

constexpr DTypeRow kDTypes[] = {
    {DType::kF32, "F32", 4},        {DType::kBF16, "BF16", 2},      {DType::kF16, "F16", 2},
    {DType::kF8E4M3, "F8_E4M3", 1}, {DType::kF8E5M2, "F8_E5M2", 1}, {DType::kF8E8M0, "F8_E8M0", 1},
    {DType::kF64, "F64", 8},        {DType::kI8, "I8", 1},          {DType::kU8, "U8", 1},
    {DType::kI16, "I16", 2},        {DType::kU16, "U16", 2},        {DType::kI32, "I32", 4},
    {DType::kU32, "U32", 4},        {DType::kI64, "I64", 8},        {DType::kU64, "U64", 8},
    {DType::kBool, "BOOL", 1},
};

constexpr bool rows_are_in_order() {
  for (size_t i = 0; i < std::size(kDTypes); ++i)
    if (static_cast<size_t>(kDTypes[i].dtype) != i) return false;
  return true;
}
static_assert(rows_are_in_order());

}  // namespace

int64_t size_of(DType dtype) {
  return kDTypes[static_cast<size_t>(dtype)].bytes;
}
std::string_view name_of(DType dtype) {
  return kDTypes[static_cast<size_t>(dtype)].name;
}

bool parse_dtype(std::string_view safetensors_name, DType& dtype) {
  for (const DTypeRow& row : kDTypes)
    if (row.name == safetensors_name) {
      dtype = row.dtype;
      return true;
    }
  return false;
}

float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000 | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
  return sign ? -magnitude : magnitude;
}

uint16_t float_to_half(float value) {
  const auto word = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((word >> 16) & 0x8000);
  const uint32_t magnitude = word & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity
  if (magnitude < 0x38800000) {                       // below 2^-14: subnormal, steps of 2^-24
    return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(std::bit_cast<float>(magnitude), 24)));
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return sign | static_cast<uint16_t>((rounded - 0x38000000) >> 13);
}

float e4m3_to_float(uint8_t bits) {
  const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
  if ((bits & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                                        : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  return (bits & 0x80) ? -magnitude : magnitude;
}

uint8_t float_to_e4m3(float value) {
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (std::isnan(value)) return sign | 0x7f;
  const float magnitude = std::fabs(value);
  if (magnitude >= 448) return sign | 0x7e;
  if (magnitude == 0) return sign;  // frexp calls its exponent 0, not the smallest
  int exponent = 0;
  std::frexp(magnitude, &exponent);                 // magnitude = f * 2^exponent with f in [0.5, 1)
  const int step = std::max(exponent - 1, -6) - 3;  // the distance between neighbours is 2^step
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -step)));
  // `steps` counts from 0 within the binade (8..16) or the subnormals (0..8); a carry moves to the next binade by
  // itself.
  const int biased = step + 3 + 7;  // exponent field of this binade, 1 for the subnormals' neighbours
  return static_cast<uint8_t>(sign | ((biased - 1) * 8 + steps));
}

}  // namespace plait
