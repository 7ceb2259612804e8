#include "comm/expert_rows.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "base/assert.h"

namespace plait::comm {
namespace {

constexpr float kLargestE4M3 = 448;
constexpr int64_t kBlock = 64;  // a fixed length, so that the loop vectorises

// BFloat16's rounding without a branch.
uint16_t to_bfloat16(float value) {
  const auto word = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  const uint32_t quiet = (word >> 16) | 0x40;
  return static_cast<uint16_t>((word & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

void encode_bf16(int64_t hidden, const float* in, uint16_t* out) {
  int64_t begin = 0;
  for (; begin + kBlock <= hidden; begin += kBlock)
    for (int64_t i = 0; i < kBlock; ++i) out[begin + i] = to_bfloat16(in[begin + i]);
  for (; begin < hidden; ++begin) out[begin] = to_bfloat16(in[begin]);
}

void encode_e4m3(int64_t hidden, const float* in, std::byte* out, float* scales) {
  for (int64_t begin = 0; begin < hidden; begin += kScaleGroup) {
    const int64_t end = std::min(begin + kScaleGroup, hidden);
    float largest = 0;
    for (int64_t i = begin; i < end; ++i) largest = std::max(largest, std::fabs(in[i]));
    // A group of zeros, and one so small that its scale would vanish, keep 1.
    float scale = largest / kLargestE4M3;
    if (!(scale > 0)) scale = 1;
    scales[begin / kScaleGroup] = scale;
    for (int64_t i = begin; i < end; ++i) out[i] = static_cast<std::byte>(float_to_e4m3(in[i] / scale));
  }
}

}  // namespace

void encode_row(DType payload, int64_t hidden, const float* in, std::byte* out, float* scales) {
  if (payload == DType::kF32) {
    std::memcpy(out, in, static_cast<size_t>(hidden) * sizeof(float));
  } else if (payload == DType::kBF16) {
    encode_bf16(hidden, in, reinterpret_cast<uint16_t*>(out));
  } else {
    PLAIT_ASSERT(payload == DType::kF8E4M3, "an exchange carries F32, BF16 or F8_E4M3");
    encode_e4m3(hidden, in, out, scales);
  }
}

void decode_row(DType payload, int64_t hidden, const std::byte* in, const float* scales, float* out) {
  if (payload == DType::kF32) {
    std::memcpy(out, in, static_cast<size_t>(hidden) * sizeof(float));
  } else if (payload == DType::kBF16) {
    const auto* values = reinterpret_cast<const BFloat16*>(in);
    for (int64_t i = 0; i < hidden; ++i) out[i] = static_cast<float>(values[i]);
  } else {
    PLAIT_ASSERT(payload == DType::kF8E4M3, "an exchange carries F32, BF16 or F8_E4M3");
    for (int64_t i = 0; i < hidden; ++i) out[i] = e4m3_to_float(static_cast<uint8_t>(in[i])) * scales[i / kScaleGroup];
  }
}

void add_weighted_row(int64_t hidden, float weight, const float* __restrict row, float* __restrict sum) {
  int64_t begin = 0;
  for (; begin + kBlock <= hidden; begin += kBlock)
    for (int64_t i = 0; i < kBlock; ++i) sum[begin + i] += weight * row[begin + i];
  for (; begin < hidden; ++begin) sum[begin] += weight * row[begin];
}

}  // namespace plait::comm
