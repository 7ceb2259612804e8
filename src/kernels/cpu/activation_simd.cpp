#include "kernels/cpu/implementations.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/activation_simd.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace plait::kernels::HWY_NAMESPACE {
namespace {

void swiglu_row(const float* gate, const float* up, int64_t width, float* y) {
  map_pairs(gate, up, y, width, [](Vector g, Vector u) HWY_ATTR { return hn::Mul(hn::Mul(g, sigmoid(g)), u); });
}

void exp_row(const float* x, int64_t count, float* y) {
  map_pairs(x, x, y, count, [](Vector v, Vector) HWY_ATTR { return exp_non_positive(v); });
}

}  // namespace
}  // namespace plait::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace plait::kernels {
HWY_EXPORT(swiglu_row);
HWY_EXPORT(exp_row);

namespace fast {

void swiglu(const Context& context, ConstRows gate_up, Rows y) {
  const auto swiglu_row = HWY_DYNAMIC_DISPATCH(swiglu_row);
  context.pool->parallel_for(y.rows, rows_per_chunk(y.cols), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) swiglu_row(gate_up.row(i), gate_up.row(i) + y.cols, y.cols, y.row(i));
  });
}

void exp_non_positive(std::span<const float> x, float* y) {
  HWY_DYNAMIC_DISPATCH(exp_row)(x.data(), std::ssize(x), y);
}

}  // namespace fast
}  // namespace plait::kernels
#endif
