#include "kernels/cpu/gate_selection.h"
#include "kernels/cpu/implementations.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/gate_simd.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace plait::kernels::HWY_NAMESPACE {
namespace {

constexpr Floats kFloats;

void sigmoid_row(const float* logits, int64_t experts, float* scores) {
  map_pairs(logits, logits, scores, experts, [](Vector v, Vector) HWY_ATTR { return sigmoid(v); });
}

void softmax_row(const float* logits, int64_t experts, float* scores) {
  const Vector maximum = hn::Set(kFloats, *std::max_element(logits, logits + experts));
  map_pairs(logits, logits, scores, experts,
            [&](Vector v, Vector) HWY_ATTR { return exp_non_positive(hn::Sub(v, maximum)); });
  float sum = 0;
  for (int64_t e = 0; e < experts; ++e) sum += scores[e];
  const Vector total = hn::Set(kFloats, sum);
  map_pairs(scores, scores, scores, experts, [&](Vector v, Vector) HWY_ATTR { return hn::Div(v, total); });
}

// The rounding of a chain of float32 additions grows with its length. So each lane of a chain covers few inputs, and
// what the chains come to is added in double.
constexpr int kChain = 4;  // vectors

float dot(const float* x, const float* weight, int64_t width) {
  const hn::Repartition<double, Floats> doubles;
  const auto widened = [&](Vector v) HWY_ATTR {
    return hn::Add(hn::PromoteTo(doubles, hn::LowerHalf(v)),
                   hn::PromoteTo(doubles, hn::UpperHalf(hn::Half<Floats>(), v)));
  };
  auto sum = hn::Zero(doubles);
  int64_t i = 0;
  while (i + kLanes <= width) {
    Vector chain = hn::Zero(kFloats);
    for (int n = 0; n < kChain && i + kLanes <= width; ++n, i += kLanes)
      chain = hn::MulAdd(hn::LoadU(kFloats, x + i), hn::LoadU(kFloats, weight + i), chain);
    sum = hn::Add(sum, widened(chain));
  }
  if (i < width) sum = hn::Add(sum, widened(hn::Mul(load_tail(x + i, width - i), load_tail(weight + i, width - i))));
  return static_cast<float>(hn::GetLane(hn::SumOfLanes(doubles, sum)));
}

// logits[e] of one token for experts [begin, end)
void router_row(const float* x, ConstRows weight, int64_t begin, int64_t end, float* logits) {
  for (int64_t e = begin; e < end; ++e) logits[e] = dot(x, weight.row(e), weight.cols);
}

}  // namespace
}  // namespace plait::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace plait::kernels {
HWY_EXPORT(sigmoid_row);
HWY_EXPORT(softmax_row);
HWY_EXPORT(router_row);

namespace fast {

void choose_experts(const Context& context, const GateConfig& config, ConstRows logits, const float* bias,
                    int32_t* expert_ids, float* expert_weights) {
  const auto scores_of_row =
      config.scoring == GateScoring::kSoftmax ? HWY_DYNAMIC_DISPATCH(softmax_row) : HWY_DYNAMIC_DISPATCH(sigmoid_row);
  const int64_t experts = config.experts, k = config.experts_per_token;
  context.pool->parallel_for(logits.rows, 8, [&](int64_t begin, int64_t end, int) {
    std::vector<float> scores(experts), scratch(gate_scratch_floats(config));
    for (int64_t t = begin; t < end; ++t) {
      scores_of_row(logits.row(t), experts, scores.data());
      select_experts(config, scores, bias, scratch.data(), expert_ids + t * k, expert_weights + t * k);
    }
  });
}

void router_logits(const Context& context, ConstRows x, ConstRows weight, Rows logits) {
  const auto router_row = HWY_DYNAMIC_DISPATCH(router_row);
  // Weights of a chunk of experts stay in the cache for all tokens.
  context.pool->parallel_for(weight.rows, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = 0; t < x.rows; ++t) router_row(x.row(t), weight, begin, end, logits.row(t));
  });
}

}  // namespace fast
}  // namespace plait::kernels
#endif
