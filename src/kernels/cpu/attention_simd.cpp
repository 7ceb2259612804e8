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

// -- Products of rows with a matrix --

constexpr int kWideVectors = 2;
constexpr int kBlockRows = kRegisters == 32 ? 8 : 6;

// One block of c: kRows rows, kVectors vectors of columns; call's pointers already stand at its corner.
template <int kVectors, int kRows>
void product_block(const ProductCall& call, int64_t begin, int64_t end, bool accumulate) {
  Vector sums[kRows * kVectors];
  unroll<kRows * kVectors>([&](auto s) HWY_ATTR {
    constexpr int r = s / kVectors, v = s % kVectors;
    sums[s] = accumulate ? hn::Load(kFloats, call.c + r * call.c_stride + v * kLanes) : hn::Zero(kFloats);
  });
  const float* const a = call.a;
  const int64_t a_stride = call.a_stride, b_stride = call.b_stride;
  const float* b_row = call.b + begin * b_stride;
  for (int64_t i = begin; i < end; ++i, b_row += b_stride) {
    Vector b[kVectors];
    unroll<kVectors>([&](auto v) HWY_ATTR { b[v] = hn::Load(kFloats, b_row + v * kLanes); });
    unroll<kRows>([&](auto r) HWY_ATTR {
      const Vector factor = hn::Set(kFloats, a[r * a_stride + i]);
      unroll<kVectors>([&](auto v)
                           HWY_ATTR { sums[r * kVectors + v] = hn::MulAdd(factor, b[v], sums[r * kVectors + v]); });
    });
  }
  float* c = call.c;
  const int64_t c_stride = call.c_stride;
  unroll<kRows * kVectors>([&](auto s) HWY_ATTR {
    constexpr int r = s / kVectors, v = s % kVectors;
    hn::Store(sums[s], kFloats, c + r * c_stride + v * kLanes);
  });
}

using ProductBlock = void (*)(const ProductCall& call, int64_t begin, int64_t end, bool accumulate);
// Blocks of one width for 1 to kBlockRows rows.
struct ProductBlocks {
  ProductBlock of_rows[kBlockRows + 1] = {};
};
template <int kVectors, int... kRowsMinus1>
constexpr ProductBlocks product_blocks(std::integer_sequence<int, kRowsMinus1...>) {
  return {{nullptr, &product_block<kVectors, kRowsMinus1 + 1>...}};
}
constexpr ProductBlocks kWide = product_blocks<kWideVectors>(std::make_integer_sequence<int, kBlockRows>());
constexpr ProductBlocks kNarrow = product_blocks<1>(std::make_integer_sequence<int, kBlockRows>());

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
    const ProductBlocks& blocks = wide ? kWide : kNarrow;
    for (int64_t row = 0; row < call.rows; row += kBlockRows) {
      ProductCall block = call;
      block.rows = std::min<int64_t>(kBlockRows, call.rows - row);
      block.a += row * call.a_stride;
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

void finish(const float* values, float sum, float* out, int64_t width) {
  const Vector factor = hn::Set(kFloats, sum == 0 ? 0 : 1 / sum);
  map_pairs(values, values, out, width, [&](Vector v, Vector) HWY_ATTR { return hn::Mul(v, factor); });
}

const AttentionKernels* kernels() {
  static const AttentionKernels kKernels = {
      .name = hwy::TargetName(HWY_TARGET),
      .load_row = load_row,
      .store_row = store_row,
      .softmax_rows = softmax_rows,
      .product = product,
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
