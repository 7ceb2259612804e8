// The one pass of the sampler that computes rather than compares: exp of a whole vocabulary and its sum in doubles.
#include "engine/vocabulary_scan.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/vocabulary_exp_simd.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace plait::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
namespace simd = kernels::HWY_NAMESPACE;

constexpr simd::Floats kFloats;
constexpr hn::Repartition<double, simd::Floats> kDoubles;
constexpr int64_t kGroup = 16;  // elements, of which each has its own sum on every instruction set

// exp of kGroup logits at `logits`; added to sums [kGroup], stored at `weights` if that is not nullptr.
HWY_INLINE void exp_group(const float* logits, float max, float inverse_temperature, float* weights, double* sums) {
  const hn::Half<simd::Floats> half;
  const auto zero = hn::Zero(kFloats);
  for (int64_t i = 0; i < kGroup; i += simd::kLanes) {
    const auto difference = hn::Sub(hn::LoadU(kFloats, logits + i), hn::Set(kFloats, max));
    const auto x = hn::Mul(difference, hn::Set(kFloats, inverse_temperature));
    // Positive only for a logit of +infinity.
    const auto exponential = simd::exp_non_positive(hn::IfThenElse(hn::Gt(x, zero), zero, x));
    const auto weight = hn::IfThenElse(hn::IsNaN(x), zero, exponential);
    if (weights != nullptr) hn::StoreU(weight, kFloats, weights + i);
    double* const lower = sums + i;
    double* const upper = lower + simd::kLanes / 2;
    hn::StoreU(hn::Add(hn::LoadU(kDoubles, lower), hn::PromoteTo(kDoubles, hn::LowerHalf(half, weight))), kDoubles,
               lower);
    hn::StoreU(hn::Add(hn::LoadU(kDoubles, upper), hn::PromoteTo(kDoubles, hn::UpperHalf(half, weight))), kDoubles,
               upper);
  }
}

double exp_pass(const float* logits, int64_t count, float max, float inverse_temperature, float* weights) {
  HWY_ALIGN double sums[kGroup] = {};
  int64_t i = 0;
  for (; i + kGroup <= count; i += kGroup)
    exp_group(logits + i, max, inverse_temperature, weights == nullptr ? nullptr : weights + i, sums);
  if (i < count) {
    float padded[kGroup], padded_weights[kGroup];
    std::fill(padded, padded + kGroup, -std::numeric_limits<float>::infinity());
    std::copy(logits + i, logits + count, padded);
    exp_group(padded, max, inverse_temperature, padded_weights, sums);
    if (weights != nullptr) std::copy(padded_weights, padded_weights + count - i, weights + i);
  }
  for (int64_t half = kGroup / 2; half > 0; half /= 2)
    for (int64_t lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

}  // namespace
}  // namespace plait::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace plait {
HWY_EXPORT(exp_pass);

double softmax_weights(std::span<const float> logits, float max, float inverse_temperature, std::span<float> weights) {
  return HWY_DYNAMIC_DISPATCH(exp_pass)(logits.data(), static_cast<int64_t>(logits.size()), max, inverse_temperature,
                                        weights.data());
}

double sum_of_exp(std::span<const float> logits, float max) {
  return HWY_DYNAMIC_DISPATCH(exp_pass)(logits.data(), static_cast<int64_t>(logits.size()), max, 1, nullptr);
}

}  // namespace plait
#endif
