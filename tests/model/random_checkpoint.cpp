#include "tests/model/random_checkpoint.h"

#include <random>

#include "model/model.h"

namespace plait::testing {
namespace {

// Random values in sizes that keep activations near 1.
std::vector<float> random_values(const WeightRequest& request, std::mt19937& generator) {
  int64_t count = 1;
  for (const int64_t extent : request.shape) count *= extent;
  const bool is_norm = request.name.ends_with("norm.weight");
  const bool is_bias = request.name.ends_with("e_score_correction_bias");
  const double spread = is_norm ? 0.1 : is_bias ? 0.3 : 1 / std::sqrt(static_cast<double>(request.shape.back()));
  std::normal_distribution<float> normal(is_norm ? 1.0f : 0.0f, static_cast<float>(spread));
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

}  // namespace

ModelConfig tiny_config() {
  ModelConfig config;
  config.family = Family::kDeepseekV3;
  config.model_type = "deepseek_v3";
  config.vocab_size = 96;
  config.hidden_size = 48;
  config.intermediate_size = 80;
  config.moe_intermediate_size = 24;
  config.num_hidden_layers = 3;
  config.first_k_dense_replace = 1;
  config.num_attention_heads = 3;
  config.q_lora_rank = 20;
  config.kv_lora_rank = 16;
  config.qk_nope_head_dim = 12;
  config.qk_rope_head_dim = 8;
  config.v_head_dim = 10;
  config.n_shared_experts = 1;
  config.gate.experts = 8;
  config.gate.experts_per_token = 3;
  config.gate.groups = 4;
  config.gate.kept_groups = 2;
  config.gate.scaling_factor = 2.5f;
  config.rope.yarn = true;
  config.rope.factor = 40;
  config.rope.original_max_positions = 32;
  config.rope.mscale = config.rope.mscale_all_dim = 1;
  config.max_position_embeddings = 200000;
  return config;
}

void set_fp8(ModelConfig& config) {
  config.hidden_size = 160;
  config.intermediate_size = 200;
  config.moe_intermediate_size = 136;
  config.q_lora_rank = 144;
  config.kv_lora_rank = 136;
  config.num_attention_heads = 5;
  config.fp8_block = 128;
}

void set_v2_lite(ModelConfig& config) {
  config.family = Family::kDeepseekV2;
  config.q_lora_rank.reset();
  config.gate.scoring = GateScoring::kSoftmax;
  config.gate.method = GateMethod::kGreedy;
  config.gate.normalise = false;
  config.gate.scaling_factor = 1;
  config.n_shared_experts = 2;
}

TensorSet random_checkpoint(const ModelConfig& config, const Variant& variant, uint32_t seed) {
  std::mt19937 generator(seed);
  TensorSet set;
  for (const WeightRequest& request : make_model(config, {}).value()->weight_requests()) {
    std::vector<float> values = random_values(request, generator);
    variant.adjust(request.name, values);
    const bool fp8 = variant.stored == Stored::kFp8 || variant.stored == Stored::kFp8PowerOfTwo;
    if (request.name.ends_with("e_score_correction_bias"))
      set.put(request.name, request.shape, values, DType::kF32);
    else if (fp8 && request.may_be_quantised && request.name.find(variant.not_quantised) == std::string::npos)
      set.put_fp8(request.name, request.shape[0], request.shape[1], values, variant.stored == Stored::kFp8PowerOfTwo);
    else
      set.put(request.name, request.shape, values,
              variant.stored == Stored::kF32   ? DType::kF32
              : variant.stored == Stored::kF16 ? DType::kF16
                                               : DType::kBF16);
  }
  return set;
}

std::vector<int32_t> random_tokens(const ModelConfig& config, int64_t count) {
  std::mt19937 generator(7);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(generator() % static_cast<uint32_t>(config.vocab_size));
  return tokens;
}

}  // namespace plait::testing
