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

// -- Products of rows with rows --

constexpr int kDotTokens = 4;
constexpr int kDotPrefetchLines = 4;  // per block
constexpr int kDotRows = kRegisters == 32 ? 4 : 2;
static_assert(kDotRows * kDotTokens % kLanes == 0);

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
  HWY_ALIGN float block[kDotRows * kDotTokens];
  for (int64_t token = 0; token < call.tokens; token += kDotTokens) {
    // Where a block is not full, its last row or token is computed more than once.
    const float* keys[kDotTokens];
    for (int64_t t = 0; t < kDotTokens; ++t)
      keys[t] = call.keys + std::min(token + t, call.tokens - 1) * call.key_stride;
    for (int64_t row = 0; row < call.rows; row += kDotRows) {
      const float* q[kDotRows];
      for (int64_t r = 0; r < kDotRows; ++r) q[r] = call.q + std::min(row + r, call.rows - 1) * call.q_stride;
      dot_block(q, keys, call.width, block);
      for (int line = 0; call.prefetch && line < kDotPrefetchLines; ++line) call.prefetch->next_line();
      for (int64_t t = 0; t < std::min<int64_t>(kDotTokens, call.tokens - token); ++t)
        for (int64_t r = 0; r < std::min<int64_t>(kDotRows, call.rows - row); ++r)
          call.scores[(token + t) * call.score_stride + row + r] = block[r * kDotTokens + t];
    }
  }
}

// -- Softmax --

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

void softmax_rows(const SoftmaxCall& call) {
  for (int64_t row = 0; row < call.rows; ++row)
    softmax_row(call.scores + row * call.score_stride, call.visible[row], call.maximum[row], call.sum[row],
                call.values + row * call.value_stride, call.value_width);
}

// The same with rows in lanes.
void softmax_columns(const SoftmaxCall& call) {
  for (int64_t row = 0; row < call.rows; row += kLanes) {
    float* const scores = call.scores + row;
    const Vector before = hn::Load(kFloats, call.maximum + row);
    Vector maximum = before;
    for (int64_t t = 0; t < call.tokens; ++t)
      maximum = hn::Max(maximum, hn::Load(kFloats, scores + t * call.score_stride));
    hn::Store(maximum, kFloats, call.maximum + row);
    // -infinity minus -infinity would be NaN
    const auto nothing_yet = hn::Eq(maximum, hn::Set(kFloats, kNothingYet));
    maximum = hn::IfThenZeroElse(nothing_yet, maximum);
    Vector total = hn::Zero(kFloats);
    for (int64_t t = 0; t < call.tokens; ++t) {
      const Vector p = exp_non_positive(hn::Sub(hn::Load(kFloats, scores + t * call.score_stride), maximum));
      hn::Store(p, kFloats, scores + t * call.score_stride);
      total = hn::Add(total, p);
    }
    const Vector correction = exp_non_positive(hn::Sub(before, maximum));
    hn::Store(hn::MulAdd(hn::Load(kFloats, call.sum + row), correction, total), kFloats, call.sum + row);
    HWY_ALIGN float corrections[kLanes];
    hn::Store(correction, kFloats, corrections);
    for (int64_t r = 0; r < std::min<int64_t>(kLanes, call.rows - row); ++r)
      if (corrections[r] != 1) scale_row(call.values + (row + r) * call.value_stride, call.value_width, corrections[r]);
  }
}

// -- Products of rows with a matrix --

constexpr int kWideVectors = 2;
constexpr int kWideRows = kRegisters == 32 ? 8 : 6;
constexpr int kNarrowRows = kRegisters == 32 ? 16 : 6;

// How a block gets at a[r, i].
struct RowsOfA {
  static HWY_INLINE float at(const float* a, int64_t stride, int64_t r, int64_t i) { return a[r * stride + i]; }
};
// With one address for all rows a broadcast is part of the multiply-add, where several would not fit.
struct RowsOfUsualStride {
  static HWY_INLINE float at(const float* a, int64_t, int64_t r, int64_t i) { return a[r * kUsualKeyStride + i]; }
};
struct ColumnsOfA {
  static HWY_INLINE float at(const float* a, int64_t stride, int64_t r, int64_t i) { return a[i * stride + r]; }
};

// One block of c: kRows rows, kVectors vectors of columns; call's pointers already stand at its corner.
template <typename A, int kVectors, bool kPrefetch, int kRows>
void product_block(const ProductCall& call, int64_t begin, int64_t end, bool accumulate) {
  Vector sums[kRows * kVectors];
  unroll<kRows * kVectors>([&](auto s) HWY_ATTR {
    constexpr int r = s / kVectors, v = s % kVectors;
    sums[s] = accumulate ? hn::Load(kFloats, call.c + r * call.c_stride + v * kLanes) : hn::Zero(kFloats);
  });
  const float* const a = call.a;
  const int64_t a_stride = call.a_stride, b_stride = call.b_stride;
  Prefetch prefetch;  // a copy, in registers
  if constexpr (kPrefetch) prefetch = *call.prefetch;
  const float* b_row = call.b + begin * b_stride;
  for (int64_t i = begin; i < end; ++i, b_row += b_stride) {
    if constexpr (kPrefetch)
      if ((i & prefetch.interval_mask) == 0) prefetch.next_line();
    Vector b[kVectors];
    unroll<kVectors>([&](auto v) HWY_ATTR { b[v] = hn::Load(kFloats, b_row + v * kLanes); });
    unroll<kRows>([&](auto r) HWY_ATTR {
      const Vector factor = hn::Set(kFloats, A::at(a, a_stride, r, i));
      unroll<kVectors>([&](auto v)
                           HWY_ATTR { sums[r * kVectors + v] = hn::MulAdd(factor, b[v], sums[r * kVectors + v]); });
    });
  }
  if constexpr (kPrefetch) *call.prefetch = prefetch;
  float* c = call.c;
  const int64_t c_stride = call.c_stride;
  unroll<kRows * kVectors>([&](auto s) HWY_ATTR {
    constexpr int r = s / kVectors, v = s % kVectors;
    hn::Store(sums[s], kFloats, c + r * c_stride + v * kLanes);
  });
}

using ProductBlock = void (*)(const ProductCall& call, int64_t begin, int64_t end, bool accumulate);
// Blocks of one width for every number of rows up to a maximum.
struct ProductBlocks {
  int64_t max_rows = 0;
  ProductBlock of_rows[kNarrowRows + 1] = {};
};
template <typename A, int kVectors, bool kPrefetch, int... kRowsMinus1>
constexpr ProductBlocks product_blocks(std::integer_sequence<int, kRowsMinus1...>) {
  return {sizeof...(kRowsMinus1), {nullptr, &product_block<A, kVectors, kPrefetch, kRowsMinus1 + 1>...}};
}
using WideRows = std::make_integer_sequence<int, kWideRows>;
using NarrowRows = std::make_integer_sequence<int, kNarrowRows>;
constexpr ProductBlocks kWide = product_blocks<RowsOfA, kWideVectors, false>(WideRows());
constexpr ProductBlocks kNarrow = product_blocks<RowsOfA, 1, false>(WideRows());
constexpr ProductBlocks kWideUsual = product_blocks<RowsOfUsualStride, kWideVectors, true>(WideRows());
constexpr ProductBlocks kNarrowUsual = product_blocks<RowsOfUsualStride, 1, true>(NarrowRows());
constexpr ProductBlocks kWideTransposed = product_blocks<ColumnsOfA, kWideVectors, true>(WideRows());
constexpr ProductBlocks kNarrowTransposed = product_blocks<ColumnsOfA, 1, true>(WideRows());

const ProductBlocks& blocks_for(const ProductCall& call, bool wide) {
  if (call.a_transposed) return wide ? kWideTransposed : kNarrowTransposed;
  if (call.prefetch && call.a_stride == kUsualKeyStride) return wide ? kWideUsual : kNarrowUsual;
  return wide ? kWide : kNarrow;
}

// Rows that see different numbers of tokens: what all see at once, then the rest row by row. Each row's sum is the same
// chain of additions either way.
void causal_block(const ProductCall& call, const ProductBlocks& blocks, const int32_t* visible) {
  const int64_t common = visible[0];
  if (common > 0 || !call.accumulate) blocks.of_rows[call.rows](call, 0, common, call.accumulate);
  for (int64_t r = 1; r < call.rows; ++r) {
    if (visible[r] == common) continue;
    ProductCall one = call;
    one.a += r * call.a_stride;
    one.c += r * call.c_stride;
    blocks.of_rows[1](one, common, visible[r], true);
  }
}

void product(const ProductCall& call) {
  for (int64_t column = 0; column < call.columns;) {
    const bool wide = column + kWideVectors * kLanes <= call.columns;
    const ProductBlocks& blocks = blocks_for(call, wide);
    for (int64_t row = 0; row < call.rows; row += blocks.max_rows) {
      ProductCall block = call;
      block.rows = std::min(blocks.max_rows, call.rows - row);
      block.a += call.a_transposed ? row : row * call.a_stride;
      block.b += column;
      block.c += row * call.c_stride + column;
      if (call.visible)
        causal_block(block, blocks, call.visible + row);
      else
        blocks.of_rows[block.rows](block, 0, call.depth, call.accumulate);
    }
    column += (wide ? kWideVectors : 1) * kLanes;
  }
}

// -- Results --

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
      .lanes = kLanes,
      .load_row = load_row,
      .store_row = store_row,
      .dot = dot,
      .softmax_rows = softmax_rows,
      .softmax_columns = softmax_columns,
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
