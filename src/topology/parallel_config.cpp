#include "topology/parallel_config.h"

namespace plait {

const char* name_of(CpStrategy strategy) {
  return strategy == CpStrategy::kInterleave ? "interleave" : "zigzag";
}

const char* name_of(MoeA2a backend) {
  return backend == MoeA2a::kNone ? "none" : "a2a";
}

const char* name_of(DeepepMode mode) {
  constexpr const char* kNames[] = {"auto", "normal", "low_latency"};
  return kNames[static_cast<int>(mode)];
}

std::string to_flags(const ParallelConfig& config) {
  const ParallelConfig defaults;
  std::string text;
  const auto put = [&](const char* flag, const auto& value, const auto& usual) {
    if (value != usual) text += fmt::format("{}{} {}", text.empty() ? "" : " ", flag, value);
  };
  const auto put_switch = [&](const char* flag, bool on) {
    if (on) text += fmt::format("{}{}", text.empty() ? "" : " ", flag);
  };
  put("--tp-size", config.tp_size, defaults.tp_size);
  put("--pp-size", config.pp_size, defaults.pp_size);
  put("--dp-size", config.dp_size, defaults.dp_size);
  put_switch("--enable-dp-attention", config.enable_dp_attention);
  put_switch("--enable-dp-lm-head", config.enable_dp_lm_head);
  put("--ep-size", config.ep_size, defaults.ep_size);
  put("--moe-dp-size", config.moe_dp_size, defaults.moe_dp_size);
  if (config.moe_dense_tp_size) put("--moe-dense-tp-size", *config.moe_dense_tp_size, 0);
  put("--moe-a2a-backend", std::string_view(name_of(config.moe_a2a_backend)), std::string_view("none"));
  put("--deepep-mode", std::string_view(name_of(config.deepep_mode)), std::string_view("auto"));
  put("--attn-cp-size", config.attn_cp_size, defaults.attn_cp_size);
  put_switch("--enable-prefill-cp", config.enable_prefill_cp);
  if (config.cp_strategy) put("--cp-strategy", std::string_view(name_of(*config.cp_strategy)), std::string_view());
  put_switch("--prefill-cp-kv-sharded", config.prefill_cp_kv_sharded);
  put_switch("--enable-flashinfer-allreduce-fusion", config.enable_allreduce_fusion);
  put("--nnodes", config.nnodes, defaults.nnodes);
  put("--node-rank", config.node_rank, defaults.node_rank);
  put("--dist-init-addr", config.dist_init_addr, defaults.dist_init_addr);
  return text.empty() ? "--tp-size 1" : text;
}

}  // namespace plait
