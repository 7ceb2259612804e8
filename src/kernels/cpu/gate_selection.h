// The choice among scores, common to both implementations of the gate: comparisons only, no arithmetic worth SIMD.
#pragma once

#include <cstdint>
#include <span>

#include "checkpoint/model_config.h"

namespace plait::kernels {

// Scratch of one thread: choice scores [experts], then group scores [groups].
inline int64_t gate_scratch_floats(const GateConfig& config) {
  return config.experts + config.groups;
}

// scores: [experts], softmax or sigmoid of the logits. Writes expert_ids and expert_weights [experts_per_token] as
// choose_experts promises. A NaN score counts as -infinity in the choice, so that ids are valid and distinct whatever
// the logits are; a chosen one still shows in the weights.
void select_experts(const GateConfig& config, std::span<const float> scores, const float* bias, float* scratch,
                    int32_t* expert_ids, float* expert_weights);

}  // namespace plait::kernels
