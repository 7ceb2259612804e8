#include "tensor/dtype.h"

#include <cmath>
#include <functional>
#include <limits>

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace plait {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

uint32_t bits_of(float value) {
  return std::bit_cast<uint32_t>(value);
}

TEST(DType, NamesAreReadBack) {
  int known = 0;
  for (int i = 0; i <= static_cast<int>(DType::kBool); ++i) {
    const auto dtype = static_cast<DType>(i);
    DType parsed = DType::kBool;
    ASSERT_TRUE(parse_dtype(name_of(dtype), parsed));
    EXPECT_EQ(parsed, dtype);
    EXPECT_GT(size_of(dtype), 0);
    ++known;
  }
  EXPECT_EQ(known, 16);
  DType unused;
  EXPECT_FALSE(parse_dtype("F4", unused));
  EXPECT_FALSE(parse_dtype("", unused));
}

// The value of a binary format with the given field widths, from its definition.
double defined_value(uint32_t bits, int exponent_bits, int mantissa_bits, int bias) {
  const uint32_t mantissa = bits & ((1U << mantissa_bits) - 1);
  const auto exponent = static_cast<int>((bits >> mantissa_bits) & ((1U << exponent_bits) - 1));
  const double fraction = std::ldexp(static_cast<double>(mantissa), -mantissa_bits);
  const double magnitude = exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
  return (bits >> (mantissa_bits + exponent_bits)) & 1 ? -magnitude : magnitude;
}

TEST(E4M3, All256BytesHaveTheirDefinedValue) {
  int tried = 0;
  for (uint32_t byte = 0; byte < 256; ++byte, ++tried) {
    const float value = e4m3_to_float(static_cast<uint8_t>(byte));
    if ((byte & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value)) << byte;
      continue;
    }
    EXPECT_EQ(value, defined_value(byte, 4, 3, 7)) << byte;
    EXPECT_EQ(std::signbit(value), byte >= 0x80) << byte;
    EXPECT_EQ(float_to_e4m3(value), byte);
  }
  EXPECT_EQ(e4m3_to_float(0x7e), 448.0F);
  EXPECT_EQ(e4m3_to_float(0x01), 0x1p-9F);
  fmt::print("{} e4m3 bytes tried\n", tried);
}

// Checks round-to-nearest-even between every pair of neighbouring non-negative codes [0, last], with both signs: just
// below, at and just above the middle. `codes` decodes, `round` encodes; the sign bit is 1 << sign_bit.
int check_rounding(uint32_t last, int sign_bit, const std::function<double(uint32_t)>& decode,
                   const std::function<uint32_t(float)>& round) {
  int tried = 0;
  for (uint32_t code = 0; code < last; ++code) {
    const auto middle = static_cast<float>((decode(code) + decode(code + 1)) / 2);
    EXPECT_EQ(middle, (decode(code) + decode(code + 1)) / 2) << "float32 holds every middle";
    const uint32_t even = code % 2 == 0 ? code : code + 1;
    for (const uint32_t sign : {0U, 1U << sign_bit}) {
      const float s = sign ? -1.0F : 1.0F;
      EXPECT_EQ(round(s * std::nextafter(middle, 0.0F)), sign | code) << code;
      EXPECT_EQ(round(s * middle), sign | even) << code;
      EXPECT_EQ(round(s * std::nextafter(middle, kInfinity)), sign | (code + 1)) << code;
      EXPECT_EQ(round(s * static_cast<float>(decode(code))), sign | code) << code;
      tried += 4;
    }
    if (testing::Test::HasFailure()) break;  // one is enough
  }
  return tried;
}

TEST(E4M3, EveryBorderRoundsToNearestEven) {
  const int tried = check_rounding(
      0x7e, 7, [](uint32_t code) { return defined_value(code, 4, 3, 7); },
      [](float value) { return float_to_e4m3(value); });
  fmt::print("{} e4m3 roundings tried\n", tried);
}

TEST(E4M3, SaturatesAt448AndKeepsNan) {
  for (const float large : {448.0F, 463.9F, 464.0F, 480.0F, 1e30F, std::numeric_limits<float>::max(), kInfinity}) {
    EXPECT_EQ(float_to_e4m3(large), 0x7e) << large;
    EXPECT_EQ(float_to_e4m3(-large), 0xfe) << large;
  }
  EXPECT_EQ(float_to_e4m3(std::numeric_limits<float>::quiet_NaN()) & 0x7f, 0x7f);
  EXPECT_EQ(float_to_e4m3(-0.0F), 0x80);
  EXPECT_EQ(float_to_e4m3(std::numeric_limits<float>::denorm_min()), 0);
}

TEST(BF16, EveryBorderRoundsToNearestEven) {
  // Up to the largest finite value; its upper neighbour is infinity.
  const int tried = check_rounding(
      0x7f7f, 15, [](uint32_t code) { return defined_value(code, 8, 7, 127); },
      [](float value) { return BFloat16(value).bits; });
  fmt::print("{} bf16 roundings tried\n", tried);
}

TEST(BF16, All65536BitPatternsComeBack) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    BFloat16 value;
    value.bits = static_cast<uint16_t>(bits);
    const auto wide = static_cast<float>(value);
    EXPECT_EQ(bits_of(wide), bits << 16);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(wide)))) << bits;
    } else {
      ASSERT_EQ(BFloat16(wide).bits, bits);
    }
  }
}

TEST(BF16, EdgesOfTheRange) {
  EXPECT_EQ(BFloat16(std::numeric_limits<float>::max()).bits, 0x7f80);  // rounds up to infinity
  EXPECT_EQ(BFloat16(std::bit_cast<float>(0x7f7f7fffU)).bits, 0x7f7f);  // just below the border
  EXPECT_EQ(BFloat16(std::bit_cast<float>(0x7f7f8000U)).bits, 0x7f80);
  EXPECT_EQ(BFloat16(kInfinity).bits, 0x7f80);
  EXPECT_EQ(BFloat16(-kInfinity).bits, 0xff80);
  // A NaN whose payload lies in the lower half must not become infinity.
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::bit_cast<float>(0x7f800001U)))));
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::bit_cast<float>(0xffffffffU)))));
}

TEST(F16, EveryBorderRoundsToNearestEven) {
  const int tried = check_rounding(
      0x7bff, 15, [](uint32_t code) { return defined_value(code, 5, 10, 15); },
      [](float value) { return float_to_half(value); });
  fmt::print("{} f16 roundings tried\n", tried);
}

TEST(F16, All65536BitPatternsHaveTheirDefinedValue) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = half_to_float(static_cast<uint16_t>(bits));
    const bool special = (bits & 0x7c00) == 0x7c00;
    if (special && (bits & 0x3ff) != 0) {
      EXPECT_TRUE(std::isnan(value)) << bits;
      EXPECT_EQ(float_to_half(value) & 0x7c00, 0x7c00);
      EXPECT_NE(float_to_half(value) & 0x3ff, 0) << "NaN stays NaN";
    } else if (special) {
      EXPECT_EQ(value, bits >= 0x8000 ? -kInfinity : kInfinity);
    } else {
      ASSERT_EQ(value, defined_value(bits, 5, 10, 15)) << bits;
      ASSERT_EQ(std::signbit(value), bits >= 0x8000) << bits;
      ASSERT_EQ(float_to_half(value), bits);
    }
  }
}

TEST(F16, EdgesOfTheRange) {
  EXPECT_EQ(float_to_half(65504.0F), 0x7bff);
  EXPECT_EQ(float_to_half(std::nextafter(65520.0F, 0.0F)), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0F), 0x7c00);
  EXPECT_EQ(float_to_half(-1e9F), 0xfc00);
  EXPECT_EQ(float_to_half(kInfinity), 0x7c00);
  EXPECT_EQ(float_to_half(0x1p-25F), 0);  // half of the smallest: to even
  EXPECT_EQ(float_to_half(std::nextafter(0x1p-25F, 1.0F)), 1);
  EXPECT_EQ(float_to_half(-0.0F), 0x8000);
}

}  // namespace
}  // namespace plait
