#include "kernels/cpu/implementations.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm_simd.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace plait::kernels::HWY_NAMESPACE {
namespace {

constexpr Floats kFloats;

// Four sums, because one would wait for its own additions.
float sum_of_squares(const float* x, int64_t width) {
  Vector sums[4];
  unroll<4>([&](auto s) HWY_ATTR { sums[s] = hn::Zero(kFloats); });
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    unroll<4>([&](auto s) HWY_ATTR {
      const Vector v = hn::LoadU(kFloats, x + i + s * kLanes);
      sums[s] = hn::MulAdd(v, v, sums[s]);
    });
  }
  for (; i < width; i += kLanes) {
    const Vector v = i + kLanes <= width ? hn::LoadU(kFloats, x + i) : load_tail(x + i, width - i);
    sums[0] = hn::MulAdd(v, v, sums[0]);
  }
  const Vector sum = hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3]));
  return hn::GetLane(hn::SumOfLanes(kFloats, sum));
}

void norm_row(const float* x, const float* weight, float eps, int64_t width, float* y) {
  const float mean = sum_of_squares(x, width) / static_cast<float>(width);
  const Vector inverse = hn::Set(kFloats, 1 / std::sqrt(mean + eps));
  map_pairs(x, weight, y, width, [&](Vector v, Vector w) HWY_ATTR { return hn::Mul(w, hn::Mul(v, inverse)); });
}

void add_row(const float* delta, int64_t width, float* y) {
  map_pairs(delta, y, y, width, [](Vector a, Vector b) HWY_ATTR { return hn::Add(b, a); });
}

}  // namespace
}  // namespace plait::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace plait::kernels {
HWY_EXPORT(norm_row);
HWY_EXPORT(add_row);

namespace fast {

void rms_norm(const Context& context, ConstRows x, const float* weight, float eps, Rows y) {
  const auto norm_row = HWY_DYNAMIC_DISPATCH(norm_row);
  context.pool->parallel_for(x.rows, rows_per_chunk(x.cols), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) norm_row(x.row(i), weight, eps, x.cols, y.row(i));
  });
}

void add_rms_norm(const Context& context, ConstRows delta, Rows residual, const float* weight, float eps, Rows y) {
  const auto norm_row = HWY_DYNAMIC_DISPATCH(norm_row);
  const auto add_row = HWY_DYNAMIC_DISPATCH(add_row);
  context.pool->parallel_for(delta.rows, rows_per_chunk(delta.cols), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      add_row(delta.row(i), delta.cols, residual.row(i));
      norm_row(residual.row(i), weight, eps, residual.cols, y.row(i));
    }
  });
}

}  // namespace fast
}  // namespace plait::kernels
#endif
