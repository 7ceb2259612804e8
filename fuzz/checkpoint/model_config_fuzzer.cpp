// The texts of config.json and, behind a zero byte, of generation_config.json. Whatever is accepted can be computed
// with: sizes are positive, their products fit, experts divide into groups.
#include "base/assert.h"
#include "base/json.h"
#include "checkpoint/model_config.h"

namespace {

void check_gate(const plait::GateConfig& gate) {
  if (gate.experts == 0) return;
  PLAIT_ASSERT(gate.groups > 0 && gate.experts % gate.groups == 0, "groups divide experts");
  PLAIT_ASSERT(gate.kept_groups > 0 && gate.kept_groups <= gate.groups, "kept groups exist");
  PLAIT_ASSERT(gate.experts_per_token > 0 && gate.experts_per_token <= gate.experts / gate.groups * gate.kept_groups,
               "the kept groups have enough experts");
  PLAIT_ASSERT(std::isfinite(gate.scaling_factor), "a finite factor");
}

void check_sizes(const plait::ModelConfig& config) {
  for (const int64_t size :
       {config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers,
        config.num_attention_heads, config.kv_lora_rank, config.qk_nope_head_dim, config.qk_rope_head_dim,
        config.v_head_dim, config.max_position_embeddings, config.moe_layer_freq, config.q_lora_rank.value_or(1)})
    PLAIT_ASSERT(size > 0, "sizes are positive");
  PLAIT_ASSERT(config.qk_rope_head_dim % 2 == 0, "rotary pairs");
  const long double bytes = 4.0L * config.num_hidden_layers * (3.0L * (config.gate.experts + config.n_shared_experts)) *
                            config.hidden_size * std::max<int64_t>(config.moe_intermediate_size, 1);
  PLAIT_ASSERT(bytes < 0x1p63L, "the bytes of all experts fit");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t border = std::min(text.find('\0'), text.size());
  const auto config = plait::json::parse_object(text.substr(0, border));
  if (config.has_error()) return 0;
  const auto generation = plait::json::parse_object(text.substr(std::min(border + 1, text.size())));
  const auto parsed = plait::parse_model_config(*config, generation.has_value() ? &*generation : nullptr);
  if (parsed.has_error()) {
    PLAIT_ASSERT(!parsed.error().message.empty(), "an error says what is wrong");
    return 0;
  }
  check_sizes(*parsed);
  check_gate(parsed->gate);
  for (const int32_t id : parsed->eos_token_ids)
    PLAIT_ASSERT(id >= 0 && id < parsed->vocab_size, "token ids lie in the vocabulary");
  return 0;
}
