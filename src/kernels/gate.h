// Which experts a token goes to, and with what weights. Always float32, whatever the activations are.
#pragma once

#include <cstdint>

#include "checkpoint/model_config.h"
#include "kernels/context.h"
#include "tensor/matrix.h"

namespace plait::kernels {

// logits: [tokens, experts]; bias: [experts] or nullptr (e_score_correction_bias: steers the choice, never enters the
// weights). expert_ids: [tokens, experts_per_token] in descending order of choice score, equal scores: lower id first.
// expert_weights: the same shape, scaled by routed_scaling_factor. Masked groups count as -infinity.
void choose_experts(const Context& context, const GateConfig& config, ConstRows logits, const float* bias,
                    int32_t* expert_ids, float* expert_weights);

// The router's own product, in float32 with float32 weights: x [tokens, hidden], weight [experts, hidden] row-major,
// logits [tokens, experts].
void router_logits(const Context& context, ConstRows x, ConstRows weight, Rows logits);

}  // namespace plait::kernels
