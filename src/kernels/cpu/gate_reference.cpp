#include "kernels/cpu/gate_selection.h"
#include "kernels/cpu/implementations.h"

namespace plait::kernels::reference {
namespace {

void softmax(std::span<const float> logits, float* scores) {
  const float maximum = *std::ranges::max_element(logits);
  float sum = 0;
  for (size_t e = 0; e < logits.size(); ++e) {
    scores[e] = std::exp(logits[e] - maximum);
    sum += scores[e];
  }
  for (size_t e = 0; e < logits.size(); ++e) scores[e] /= sum;
}

}  // namespace

void choose_experts(const Context&, const GateConfig& config, ConstRows logits, const float* bias, int32_t* expert_ids,
                    float* expert_weights) {
  std::vector<float> scores(config.experts), scratch(gate_scratch_floats(config));
  for (int64_t t = 0; t < logits.rows; ++t) {
    const std::span row(logits.row(t), scores.size());
    if (config.scoring == GateScoring::kSoftmax)
      softmax(row, scores.data());
    else
      for (size_t e = 0; e < row.size(); ++e) scores[e] = 1 / (1 + std::exp(-row[e]));
    select_experts(config, scores, bias, scratch.data(), expert_ids + t * config.experts_per_token,
                   expert_weights + t * config.experts_per_token);
  }
}

void router_logits(const Context&, ConstRows x, ConstRows weight, Rows logits) {
  // In double: two experts may be closer to each other than the rounding of a float32 sum.
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t e = 0; e < weight.rows; ++e) {
      double sum = 0;
      for (int64_t i = 0; i < x.cols; ++i) sum += double{x.row(t)[i]} * weight.row(e)[i];
      logits.row(t)[e] = static_cast<float>(sum);
    }
  }
}

}  // namespace plait::kernels::reference
