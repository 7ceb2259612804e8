#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_simd.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace plait::kernels::HWY_NAMESPACE {
namespace {

constexpr Floats kFloats;
constexpr float kNothingYet = -std::numeric_limits<float>::infinity();

void load_row(const std::byte* row, DType dtype, int64_t width, float* out, int64_t padded_width) {
  if (dtype == DType::kF32) {
    std::memcpy(out, row, static_cast<size_t>(width) * sizeof(float));
  } else {
    const hn::Rebind<uint32_t, Floats> words;
    const hn::Rebind<uint16_t, Floats> halves;
    const auto* from = reinterpret_cast<const uint16_t*>(row);
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
      const auto word = hn::ShiftLeft<16>(hn::PromoteTo(words, hn::LoadU(halves, from + i)));
      hn::StoreU(hn::BitCast(kFloats, word), kFloats, out + i);
    }
    for (; i < width; ++i) out[i] = std::bit_cast<float>(uint32_t{from[i]} << 16);
  }
  std::fill(out + width, out + padded_width, 0.0f);
}

void store_row(const float* row, int64_t width, DType dtype, std::byte* out) {
  if (dtype == DType::kF32) {
    std::memcpy(out, row, static_cast<size_t>(width) * sizeof(float));
    return;
  }
  const hn::Rebind<uint32_t, Floats> words;
  const hn::Rebind<uint16_t, Floats> halves;
  auto* to = reinterpret_cast<uint16_t*>(out);
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Vector value = hn::LoadU(kFloats, row + i);
    const auto bits = hn::BitCast(words, value);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(words, 1));
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(words, 0x7fff))));
    const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(words, 0x40));  // rounding could make NaN infinite
    const auto result = hn::IfThenElse(hn::RebindMask(words, hn::IsNaN(value)), quiet, rounded);
    hn::StoreU(hn::TruncateTo(halves, result), halves, to + i);
  }
  for (; i < width; ++i) to[i] = BFloat16(row[i]).bits;
}

// ---- Products of rows with rows -------------------------------------------------------------------------------------

constexpr int kDotTokens = 4;
constexpr int kDotRows = kRegisters == 32 ? 4 : 2;
static_assert(kKeyTileTokens % kDotTokens == 0 && kDotRows * kDotTokens % kLanes == 0);

// Lane i of the result is the sum over lanes of vectors[i], added as a balanced tree.
template <int kCount>
HWY_INLINE Vector sum_of_each(const Vector* vectors) {
  if constexpr (kCount == 1) {
    return vectors[0];
  } else {
    const Vector low = sum_of_each<kCount / 2>(vectors);
    const Vector high = sum_of_each<kCount / 2>(vectors + kCount / 2);
    return hn::Add(hn::ConcatEven(kFloats, high, low), hn::ConcatOdd(kFloats, high, low));
  }
}

// out: [kDotRows, kDotTokens]
HWY_INLINE void dot_block(const float* const* q, const float* const* keys, int64_t width, float* out) {
  Vector sums[kDotRows * kDotTokens];
  unroll<kDotRows * kDotTokens>([&](auto i) HWY_ATTR { sums[i] = hn::Zero(kFloats); });
  for (int64_t k = 0; k < width; k += kLanes) {
    Vector key[kDotTokens];
    unroll<kDotTokens>([&](auto t) HWY_ATTR { key[t] = hn::Load(kFloats, keys[t] + k); });
    unroll<kDotRows>([&](auto r) HWY_ATTR {
      const Vector query = hn::Load(kFloats, q[r] + k);
      unroll<kDotTokens>(
          [&](auto t) HWY_ATTR { sums[r * kDotTokens + t] = hn::MulAdd(query, key[t], sums[r * kDotTokens + t]); });
    });
  }
  unroll<kDotRows * kDotTokens / kLanes>([&](auto group) HWY_ATTR {
    hn::Store(sum_of_each<kLanes>(sums + group * kLanes), kFloats, out + group * kLanes);
  });
}

void dot(const DotCall& call) {
  // Queries of 8 rows stay in the first-level cache while the tile streams past.
  constexpr int64_t kResidentRows = 8;
  HWY_ALIGN float block[kDotRows * kDotTokens];
  for (int64_t resident = 0; resident < call.rows; resident += kResidentRows) {
    const int64_t rows_end = std::min(resident + kResidentRows, call.rows);
    for (int64_t token = 0; token < call.tokens; token += kDotTokens) {
      // Where a block is not full, its last row or token is computed more than once.
      const float* keys[kDotTokens];
      for (int64_t t = 0; t < kDotTokens; ++t)
        keys[t] = call.keys + std::min(token + t, call.tokens - 1) * call.key_stride;
      for (int64_t row = resident; row < rows_end; row += kDotRows) {
        const float* q[kDotRows];
        for (int64_t r = 0; r < kDotRows; ++r) q[r] = call.q + std::min(row + r, rows_end - 1) * call.q_stride;
        dot_block(q, keys, call.width, block);
        for (int64_t r = 0; r < std::min<int64_t>(kDotRows, rows_end - row); ++r)
          std::memcpy(call.scores + (row + r) * kKeyTileTokens + token, block + r * kDotTokens,
                      kDotTokens * sizeof(float));
      }
    }
  }
}

// ---- Softmax --------------------------------------------------------------------------------------------------------

float exp_of_one(float x) {
  return hn::GetLane(exp_non_positive(hn::Set(kFloats, x)));
}

void scale_row(float* row, int64_t columns, float factor) {
  const Vector f = hn::Set(kFloats, factor);
  for (int64_t i = 0; i < columns; i += kLanes) hn::Store(hn::Mul(hn::Load(kFloats, row + i), f), kFloats, row + i);
}

// Scores of tokens that a row does not see, up to the end of the vector, become -infinity.
void hide(float* scores, int64_t visible) {
  const int64_t end = (visible + kLanes - 1) / kLanes * kLanes;
  std::fill(scores + visible, scores + end, kNothingYet);
}

void softmax_row(float* scores, int64_t visible, float& maximum, float& sum, float* values, int64_t columns) {
  if (visible == 0) return;
  hide(scores, visible);
  Vector highest = hn::Set(kFloats, kNothingYet);
  for (int64_t i = 0; i < visible; i += kLanes) highest = hn::Max(highest, hn::Load(kFloats, scores + i));
  const float new_maximum = std::max(maximum, hn::GetLane(hn::MaxOfLanes(kFloats, highest)));
  if (new_maximum == kNothingYet) {  // -infinity minus -infinity would be NaN
    std::fill_n(scores, visible, 0.0f);
    return;
  }
  const float correction = exp_of_one(maximum - new_maximum);
  const Vector m = hn::Set(kFloats, new_maximum);
  Vector total = hn::Zero(kFloats);
  for (int64_t i = 0; i < visible; i += kLanes) {
    const Vector p = exp_non_positive(hn::Sub(hn::Load(kFloats, scores + i), m));
    hn::Store(p, kFloats, scores + i);
    total = hn::Add(total, p);
  }
  sum = sum * correction + hn::GetLane(hn::SumOfLanes(kFloats, total));
  maximum = new_maximum;
  if (correction != 1) scale_row(values, columns, correction);
}

void softmax(const SoftmaxCall& call) {
  for (int64_t row = 0; row < call.rows; ++row)
    softmax_row(call.scores + row * kKeyTileTokens, call.visible[row], call.maximum[row], call.sum[row],
                call.sums_of_values + row * call.stride, call.columns);
}

// ---- Products of rows with a matrix
// -----------------------------------------------------------------------------------

constexpr int kProductRows = kRegisters == 32 ? 8 : 6;
constexpr int kProductVectors = 2;

// One block of c: kRows rows, kVectors vectors of columns; call's pointers already stand at its corner.
template <int kRows, int kVectors, bool kPrefetch>
void product_block(const ProductCall& call, int64_t begin, int64_t end, bool accumulate, int64_t prefetch_offset) {
  Vector sums[kRows * kVectors];
  unroll<kRows * kVectors>([&](auto i) HWY_ATTR {
    constexpr int r = i / kVectors, v = i % kVectors;
    sums[i] = accumulate ? hn::Load(kFloats, call.c + r * call.c_stride + v * kLanes) : hn::Zero(kFloats);
  });
  const float* a[kRows];
  unroll<kRows>([&](auto r) HWY_ATTR { a[r] = call.a + r * call.a_stride; });
  const float* b_row = call.b + begin * call.b_stride;
  for (int64_t i = begin; i < end; ++i, b_row += call.b_stride) {
    if constexpr (kPrefetch) __builtin_prefetch(call.prefetch[i] + prefetch_offset, 0, 2);
    Vector b[kVectors];
    unroll<kVectors>([&](auto v) HWY_ATTR { b[v] = hn::Load(kFloats, b_row + v * kLanes); });
    unroll<kRows>([&](auto r) HWY_ATTR {
      const Vector factor = hn::Set(kFloats, a[r][i]);
      unroll<kVectors>([&](auto v)
                           HWY_ATTR { sums[r * kVectors + v] = hn::MulAdd(factor, b[v], sums[r * kVectors + v]); });
    });
  }
  unroll<kRows * kVectors>([&](auto i) HWY_ATTR {
    constexpr int r = i / kVectors, v = i % kVectors;
    hn::Store(sums[i], kFloats, call.c + r * call.c_stride + v * kLanes);
  });
}

using ProductBlock = void (*)(const ProductCall& call, int64_t begin, int64_t end, bool accumulate,
                              int64_t prefetch_offset);
struct ProductBlocks {
  ProductBlock block[kProductRows + 1];  // by number of rows
};
template <int kVectors, bool kPrefetch, int... kRows>
constexpr ProductBlocks product_blocks(std::integer_sequence<int, kRows...>) {
  return {{nullptr, &product_block<kRows + 1, kVectors, kPrefetch>...}};
}
using EveryRowCount = std::make_integer_sequence<int, kProductRows>;
constexpr ProductBlocks kWide = product_blocks<kProductVectors, false>(EveryRowCount());
constexpr ProductBlocks kWideWithPrefetch = product_blocks<kProductVectors, true>(EveryRowCount());
constexpr ProductBlocks kNarrow = product_blocks<1, false>(EveryRowCount());

// Rows that see different numbers of tokens: what all see at once, then the rest row by row. Each row's sum is the same
// chain of additions either way.
void causal_block(const ProductCall& call, const ProductBlocks& blocks, const int32_t* visible) {
  const int64_t common = visible[0];
  if (common > 0 || !call.accumulate) blocks.block[call.rows](call, 0, common, call.accumulate, 0);
  for (int64_t r = 1; r < call.rows; ++r) {
    if (visible[r] == common) continue;
    ProductCall one = call;
    one.rows = 1;
    one.a += r * call.a_stride;
    one.c += r * call.c_stride;
    blocks.block[1](one, common, visible[r], true, 0);
  }
}

void product(const ProductCall& call) {
  int64_t prefetch_offset = 0;
  const int64_t columns_at_once = kProductVectors * kLanes;
  for (int64_t column = 0; column < call.columns; column += columns_at_once) {
    const bool wide = column + columns_at_once <= call.columns;
    for (int64_t row = 0; row < call.rows; row += kProductRows) {
      ProductCall block = call;
      block.rows = std::min<int64_t>(kProductRows, call.rows - row);
      block.a += row * call.a_stride;
      block.b += column;
      block.c += row * call.c_stride + column;
      const bool prefetch = wide && !call.visible && prefetch_offset < call.prefetch_bytes;
      const ProductBlocks& blocks = prefetch ? kWideWithPrefetch : wide ? kWide : kNarrow;
      if (call.visible)
        causal_block(block, blocks, call.visible + row);
      else
        blocks.block[block.rows](block, 0, call.depth, call.accumulate, prefetch_offset);
      if (prefetch) prefetch_offset += 64;
    }
  }
}

// ---- Results
// ----------------------------------------------------------------------------------------------------------

void merge(float other_maximum, float other_sum, const float* other, float& maximum, float& sum, float* values,
           int64_t columns) {
  if (other_maximum == kNothingYet) return;
  const float new_maximum = std::max(maximum, other_maximum);
  const float mine = exp_of_one(maximum - new_maximum), theirs = exp_of_one(other_maximum - new_maximum);
  maximum = new_maximum;
  sum = sum * mine + other_sum * theirs;
  const Vector m = hn::Set(kFloats, mine), t = hn::Set(kFloats, theirs);
  for (int64_t i = 0; i < columns; i += kLanes) {
    const Vector scaled = hn::Mul(hn::Load(kFloats, values + i), m);
    hn::Store(hn::MulAdd(hn::Load(kFloats, other + i), t, scaled), kFloats, values + i);
  }
}

void finish(const float* values, float sum, float* out, int64_t width) {
  const Vector factor = hn::Set(kFloats, sum == 0 ? 0 : 1 / sum);
  map_pairs(values, values, out, width, [&](Vector v, Vector) HWY_ATTR { return hn::Mul(v, factor); });
}

const AttentionKernels* kernels() {
  static const AttentionKernels kKernels = {
      .name = hwy::TargetName(HWY_TARGET),
      .load_row = load_row,
      .store_row = store_row,
      .dot = dot,
      .softmax = softmax,
      .product = product,
      .merge = merge,
      .finish = finish,
  };
  return &kKernels;
}

}  // namespace
}  // namespace plait::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace plait::kernels {
HWY_EXPORT(kernels);
const AttentionKernels& attention_kernels() {
  return *HWY_DYNAMIC_DISPATCH(kernels)();
}
}  // namespace plait::kernels
#endif
