#include "model/shard_shapes.h"

namespace plait {
namespace {

AttentionShapes attention_shapes(const ModelConfig& config, Range heads) {
  const int64_t hidden = config.hidden_size, latent = config.kv_lora_rank, count = heads.size();
  AttentionShapes shapes{.heads = heads, .query_rows = config.q_lora_rank.value_or(count * config.qk_head_dim())};
  shapes.query_latent = {shapes.query_rows + latent + config.qk_rope_head_dim, hidden};
  if (config.q_lora_rank) shapes.q_b = {count * config.qk_head_dim(), *config.q_lora_rank};
  shapes.kv_b = {count * (config.qk_nope_head_dim + config.v_head_dim), latent};
  shapes.o = {hidden, count * config.v_head_dim};
  return shapes;
}

FeedForwardShapes feed_forward_shapes(const ModelConfig& config, int64_t width, ShardPart part) {
  const Range local = part.of(width, config.fp8_block.value_or(1));
  return {local, {2 * local.size(), config.hidden_size}, {config.hidden_size, local.size()}};
}

}  // namespace

ShardShapes shard_shapes(const ModelConfig& config, const ModelShard& shard) {
  const int64_t expert_width = config.moe_intermediate_size;
  ShardShapes shapes;
  shapes.attention = attention_shapes(config, shard.heads.of(config.num_attention_heads));
  shapes.dense = feed_forward_shapes(config, config.intermediate_size, shard.dense_width);
  shapes.shared = feed_forward_shapes(config, config.n_shared_experts * expert_width, shard.shared_width);
  shapes.expert = feed_forward_shapes(config, expert_width, shard.expert_width);
  shapes.experts = shard.experts.of(config.gate.experts);
  shapes.head_ids = shard.head.of(config.vocab_size);
  shapes.lm_head = {shapes.head_ids.size(), config.hidden_size};
  return shapes;
}

}  // namespace plait
