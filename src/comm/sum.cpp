#include "comm/sum.h"

#include <bit>
#include <cstring>

#include "base/assert.h"

namespace plait::comm {
namespace {

// Long enough that the loops vectorise and the sources' streams stay few cache lines each.
constexpr int64_t kBlock = 256;

float widen(float value) {
  return value;
}
float widen(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}
void narrow(float value, float& out) {
  out = value;
}
void narrow(float value, uint16_t& out) {  // BFloat16's rounding without a branch
  const auto word = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  const uint32_t quiet = (word >> 16) | 0x40;
  out = static_cast<uint16_t>((word & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

template <typename T>
void add_block(std::span<const std::byte* const> sources, T* out, int64_t begin) {
  float sum[kBlock];
  const T* first = reinterpret_cast<const T*>(sources[0]) + begin;
  for (int64_t i = 0; i < kBlock; ++i) sum[i] = widen(first[i]);
  for (size_t r = 1; r < sources.size(); ++r) {
    const T* source = reinterpret_cast<const T*>(sources[r]) + begin;
    for (int64_t i = 0; i < kBlock; ++i) sum[i] += widen(source[i]);
  }
  for (int64_t i = 0; i < kBlock; ++i) narrow(sum[i], out[begin + i]);
}

template <typename T>
void add(std::span<const std::byte* const> sources, T* out, int64_t count) {
  int64_t begin = 0;
  for (; begin + kBlock <= count; begin += kBlock) add_block(sources, out, begin);
  for (; begin < count; ++begin) {
    float sum = widen(reinterpret_cast<const T*>(sources[0])[begin]);
    for (size_t r = 1; r < sources.size(); ++r) sum += widen(reinterpret_cast<const T*>(sources[r])[begin]);
    narrow(sum, out[begin]);
  }
}

}  // namespace

void sum_in_rank_order(DType dtype, std::span<const std::byte* const> sources, std::byte* out, int64_t count) {
  if (count == 0) return;
  if (sources.size() == 1) {
    if (sources[0] != out) std::memcpy(out, sources[0], static_cast<size_t>(count * size_of(dtype)));
    return;
  }
  PLAIT_ASSERT(dtype == DType::kF32 || dtype == DType::kBF16, "only F32 and BF16 are summed over ranks");
  if (dtype == DType::kF32)
    add(sources, reinterpret_cast<float*>(out), count);
  else
    add(sources, reinterpret_cast<uint16_t*>(out), count);
}

}  // namespace plait::comm
