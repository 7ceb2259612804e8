#include "model/model_facts.h"

namespace plait {

ModelFacts model_facts(const ModelConfig& config) {
  return {.layers = config.num_hidden_layers,
          .first_expert_layer = config.first_k_dense_replace,
          .expert_layer_stride = config.moe_layer_freq,
          .vocabulary = config.vocab_size,
          .hidden = config.hidden_size,
          .heads = config.num_attention_heads,
          .qk_head_dim = config.qk_head_dim(),
          .v_head_dim = config.v_head_dim,
          .q_lora_rank = config.q_lora_rank.value_or(0),
          .latent_width = config.kv_lora_rank + config.qk_rope_head_dim,
          .dense_intermediate = config.intermediate_size,
          .experts = config.gate.experts,
          .experts_per_token = config.gate.experts_per_token,
          .expert_intermediate = config.moe_intermediate_size,
          .shared_intermediate = config.n_shared_experts * config.moe_intermediate_size,
          .fp8_block = config.fp8_block.value_or(0)};
}

}  // namespace plait
