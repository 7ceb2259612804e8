#include "tests/topology/configurations.h"

#include "topology/rules.h"

namespace plait::test {
namespace {

std::vector<int> divisors(int n) {
  std::vector<int> all;
  for (int d = 1; d <= n; ++d)
    if (n % d == 0) all.push_back(d);
  return all;
}

void add_if_valid(const ParallelConfig& config, std::vector<ParallelConfig>& all) {
  const ParallelVerdict verdict = judge(config, nullptr);
  if (verdict.accepted() && verdict.config == config) all.push_back(config);
}

void add_attention_forms(ParallelConfig config, std::vector<ParallelConfig>& all) {
  for (const int dp : divisors(config.tp_size))
    for (const int cp : divisors(config.tp_size / dp))
      for (const bool dp_head : {false, true})
        for (const CpStrategy strategy : {CpStrategy::kInterleave, CpStrategy::kZigzag}) {
          if (cp == 1 && strategy == CpStrategy::kZigzag) continue;
          config.dp_size = dp;
          config.enable_dp_attention = dp > 1;
          config.attn_cp_size = cp;
          config.enable_prefill_cp = cp > 1;
          config.cp_strategy = cp > 1 ? std::optional(strategy) : std::nullopt;
          config.enable_dp_lm_head = dp_head;
          add_if_valid(config, all);
        }
}

void add_expert_forms(ParallelConfig config, std::vector<ParallelConfig>& all) {
  for (const int moe_dp : divisors(config.tp_size))
    for (const int ep : divisors(config.tp_size / moe_dp))
      for (const int dense : divisors(config.tp_size))
        for (const MoeA2a a2a : {MoeA2a::kNone, MoeA2a::kAllToAll}) {
          config.moe_dp_size = moe_dp;
          config.ep_size = ep;
          config.moe_dense_tp_size = dense;
          config.moe_a2a_backend = a2a;
          add_attention_forms(config, all);
        }
}

}  // namespace

std::vector<ParallelConfig> valid_configurations(int max_world) {
  std::vector<ParallelConfig> all;
  for (int tp = 1; tp <= max_world; ++tp)
    for (int pp = 1; tp * pp <= max_world; ++pp) {
      ParallelConfig config;
      config.tp_size = tp;
      config.pp_size = pp;
      add_expert_forms(config, all);
    }
  return all;
}

ModelFacts v3() {
  return {.layers = 61,
          .first_expert_layer = 3,
          .vocabulary = 129280,
          .hidden = 7168,
          .heads = 128,
          .qk_head_dim = 192,
          .v_head_dim = 128,
          .q_lora_rank = 1536,
          .latent_width = 576,
          .dense_intermediate = 18432,
          .experts = 256,
          .experts_per_token = 8,
          .expert_intermediate = 2048,
          .shared_intermediate = 2048,
          .fp8_block = 128};
}

}  // namespace plait::test
