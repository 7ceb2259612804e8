// What the SIMD sources of this directory share: vector types, unrolling, ragged ends, exp.
//
// To be included after <hwy/foreach_target.h>, once per instruction set. Results depend on the width of a row only, so
// that a row comes out the same wherever it stands.
#if defined(PLAIT_KERNELS_CPU_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PLAIT_KERNELS_CPU_VECTOR_INL_H_
#undef PLAIT_KERNELS_CPU_VECTOR_INL_H_
#else
#define PLAIT_KERNELS_CPU_VECTOR_INL_H_
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace plait::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 16>;
using Vector = hn::Vec<Floats>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(Floats()));
constexpr int kRegisters = HWY_TARGET == HWY_NEON || HWY_TARGET <= HWY_AVX3 ? 32 : 16;

// body(0), ..., body(kCount - 1) with constants, so that arrays of vectors become registers.
template <int kCount, typename Body>
HWY_API void unroll(const Body& body) {
  if constexpr (kCount > 0) {
    unroll<kCount - 1>(body);
    body(std::integral_constant<int, kCount - 1>());
  }
}

// The last `count` < kLanes elements of a row, then zeros. Touches nothing beyond them.
HWY_API Vector load_tail(const float* from, int64_t count) {
  HWY_ALIGN float lanes[kLanes] = {};
  std::memcpy(lanes, from, static_cast<size_t>(count) * sizeof(float));
  return hn::Load(Floats(), lanes);
}
HWY_API void store_tail(Vector v, float* to, int64_t count) {
  HWY_ALIGN float lanes[kLanes];
  hn::Store(v, Floats(), lanes);
  std::memcpy(to, lanes, static_cast<size_t>(count) * sizeof(float));
}

// y[i] = body(a[i], b[i]) for vectors of elements.
template <typename Body>
HWY_API void map_pairs(const float* a, const float* b, float* y, int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    hn::StoreU(body(hn::LoadU(Floats(), a + i), hn::LoadU(Floats(), b + i)), Floats(), y + i);
  if (i < count) store_tail(body(load_tail(a + i, count - i), load_tail(b + i, count - i)), y + i, count - i);
}

// exp(x) for x <= 0, within 1.5e-7 of the value. Below -87.3, where float32 ends to be normal, and for -infinity: 0.
// NaN stays NaN.
HWY_API Vector exp_non_positive(Vector x) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  // x = n ln 2 + r with |r| <= ln(2) / 2; ln 2 in two parts, of which the first times n is exact
  const auto n = hn::NearestInt(hn::Mul(x, hn::Set(d, 1.44269504f)));
  const Vector n_float = hn::ConvertTo(d, n);
  Vector r = hn::NegMulAdd(n_float, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(n_float, hn::Set(d, -2.12194440e-4f), r);
  // exp(r) = 1 + r + r^2 p(r); p interpolates at the Chebyshev nodes, error 1e-8
  Vector p = hn::Set(d, 0.001393368816934526f);
  p = hn::MulAdd(p, r, hn::Set(d, 0.008363205008208752f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.041666463017463684f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.16666576266288757f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::Add(hn::MulAdd(hn::Mul(r, r), p, r), hn::Set(d, 1.0f));
  const Vector power = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 127))));
  return hn::IfThenElse(hn::Lt(x, hn::Set(d, -87.33f)), hn::Zero(d), hn::Mul(p, power));
}

// 1 / (1 + exp(-x)), from exp(-|x|), which cannot overflow.
HWY_API Vector sigmoid(Vector x) {
  const Floats d;
  const Vector one = hn::Set(d, 1.0f);
  const Vector e = exp_non_positive(hn::Neg(hn::Abs(x)));
  return hn::Div(hn::IfThenElse(hn::Lt(x, hn::Zero(d)), e, one), hn::Add(one, e));
}

}  // namespace plait::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
