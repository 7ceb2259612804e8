// What config.json and generation_config.json of a checkpoint say, with every default made explicit.
//
// Plain values; made once by read_model_config and never changed. Both spellings of the files are accepted: the
// published one (torch_dtype, rope_theta + rope_scaling) and transformers v5's (dtype, rope_parameters). Unknown fields
// are ignored, `auto_map` among them: no code of a model folder is ever run.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <boost/json/object.hpp>

#include "base/error.h"
#include "tensor/dtype.h"

namespace plait {

enum class Family { kDeepseekV2, kDeepseekV3, kKimiK2 };  // model_type deepseek_v2, deepseek_v3, kimi_k2

enum class GateScoring { kSoftmax, kSigmoid };
enum class GateMethod {
  kGreedy,              // top-k of all scores (V2-Lite)
  kGroupLimitedGreedy,  // V2: best score of each group decides which groups stay
  kNoAuxTc,             // V3, Kimi: biased scores; sum of the two best of each group decides
};

struct GateConfig {
  GateScoring scoring = GateScoring::kSigmoid;
  GateMethod method = GateMethod::kNoAuxTc;
  int32_t experts = 0;            // n_routed_experts
  int32_t experts_per_token = 0;  // num_experts_per_tok
  int32_t groups = 1;             // n_group
  int32_t kept_groups = 1;        // topk_group
  bool normalise = true;          // norm_topk_prob
  float scaling_factor = 1;       // routed_scaling_factor
};

struct RopeConfig {
  double theta = 10000;
  bool yarn = false;
  // The rest only with yarn.
  double factor = 1;
  int64_t original_max_positions = 4096;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 1;
  double mscale_all_dim = 0;
};

struct ModelConfig {
  Family family = Family::kDeepseekV3;
  std::string model_type;  // as written
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;      // width of a dense layer's FFN
  int64_t moe_intermediate_size = 0;  // width of one expert
  int64_t num_hidden_layers = 0;
  int64_t first_k_dense_replace = 0;  // layers [0, n) are dense
  int64_t moe_layer_freq = 1;         // of the others, those with index % n == 0 have experts
  int64_t num_attention_heads = 0;
  std::optional<int64_t> q_lora_rank;  // absent: queries straight from the hidden state
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t n_shared_experts = 0;
  GateConfig gate;
  double rms_norm_eps = 1e-6;  // of layer and final norms; q_a and kv_a norms always use 1e-6
  RopeConfig rope;
  int64_t max_position_embeddings = 0;
  bool tie_word_embeddings = false;

  DType weight_dtype = DType::kBF16;  // torch_dtype / dtype
  std::optional<int64_t> fp8_block;   // 128 if quantization_config says FP8 with square blocks
  bool power_of_two_scales = false;   // scale_fmt ue8m0: activations are quantised with such scales too

  // Union of both files' ids: Kimi's chat stop token stands only in generation_config.json.
  std::vector<int32_t> eos_token_ids;
  std::optional<int32_t> bos_token_id;
  // Defaults of generation_config.json for requests that leave them out; absent where the file has none.
  struct GenerationDefaults {
    std::optional<double> temperature, top_p, repetition_penalty;
    std::optional<int64_t> top_k;
  } generation;

  bool layer_has_experts(int64_t layer) const {
    return gate.experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
  }
  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
};

// Reads `folder`/config.json and, where it exists, generation_config.json. `overrides` (--json-model-override-args)
// replaces top-level fields of config.json before anything is interpreted. Errors: kNotFound, kCorrupt (not JSON, wrong
// types, out of range: names the field), kUnsupported (model_type or quantisation that this version does not run, by
// name).
Result<ModelConfig> read_model_config(const std::filesystem::path& folder, const boost::json::object& overrides = {});

// The same from parsed objects; what the fuzz target calls.
Result<ModelConfig> parse_model_config(const boost::json::object& config, const boost::json::object* generation_config);

}  // namespace plait
