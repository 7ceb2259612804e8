// What parallel ranks must know of a model: widths that are divided among them, and which layers have experts.
//
// Plain value. A copy of a few numbers rather than the model's configuration, so that topology and layout depend on
// neither checkpoints nor models.
#pragma once

#include <cstdint>

namespace plait {

struct ModelFacts {
  int64_t layers = 0;
  int64_t first_expert_layer = 0;   // first_k_dense_replace
  int64_t expert_layer_stride = 1;  // of the layers from there on, those with index % stride == 0 have experts
  int64_t vocabulary = 0;
  int64_t hidden = 0;
  int64_t heads = 0;
  int64_t qk_head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t q_lora_rank = 0;   // 0: queries straight from the hidden state
  int64_t latent_width = 0;  // kv_lora_rank + qk_rope_head_dim: what a token leaves in the KV cache
  int64_t dense_intermediate = 0;
  int64_t experts = 0;  // routed; 0: a dense model
  int64_t experts_per_token = 0;
  int64_t expert_intermediate = 0;
  int64_t shared_intermediate = 0;  // of all shared experts together; 0: none
  int64_t fp8_block = 0;            // side of a scale's block in FP8 weights; 0: no such weights
  int64_t activation_bytes = 2;     // per element of the hidden state on the wire
  int64_t cache_bytes = 2;          // per element of the KV cache

  bool layer_has_experts(int64_t layer) const {
    return experts > 0 && layer >= first_expert_layer && layer % expert_layer_stride == 0;
  }
};

}  // namespace plait
