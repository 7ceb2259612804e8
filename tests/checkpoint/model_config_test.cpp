#include "checkpoint/model_config.h"

#include <fstream>

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/checkpoint/checkpoint_files.h"

namespace plait {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const std::filesystem::path kSource = PLAIT_SOURCE_DIR;

boost::json::object object(std::string_view text) {
  return boost::json::parse(text).as_object();
}

// DeepSeek-V3 as published.
boost::json::object v3() {
  return object(R"({
    "architectures": ["DeepseekV3ForCausalLM"], "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "model_type": "deepseek_v3", "attention_bias": false, "bos_token_id": 0, "eos_token_id": 1, "ep_size": 1,
    "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168, "intermediate_size": 18432,
    "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "moe_layer_freq": 1,
    "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": true, "num_attention_heads": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                            "weight_block_size": [128, 128]},
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": false,
    "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 129280})");
}

// DeepSeek-V2-Lite as published.
boost::json::object v2_lite() {
  return object(R"({
    "model_type": "deepseek_v2", "attention_bias": false, "bos_token_id": 100000, "eos_token_id": 100001,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 10944,
    "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 1408, "moe_layer_freq": 1,
    "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": false, "num_attention_heads": 16,
    "num_experts_per_tok": 6, "num_hidden_layers": 27, "q_lora_rank": null, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
                     "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "topk_group": 1,
    "topk_method": "greedy", "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 102400})");
}

// `config` with the fields of `changes` replaced; a field that is null in `changes` is removed.
boost::json::object with(boost::json::object config, std::string_view changes) {
  for (const auto& [key, value] : object(changes)) {
    if (value.is_null())
      config.erase(key);
    else
      config.insert_or_assign(key, value);
  }
  return config;
}

Error refusal(const boost::json::object& config) {
  auto parsed = parse_model_config(config, nullptr);
  EXPECT_TRUE(parsed.has_error()) << boost::json::serialize(config);
  return parsed.has_error() ? parsed.error() : Error{};
}

TEST(ModelConfig, ReadsDeepseekV3AsPublished) {
  const auto parsed = parse_model_config(v3(), nullptr);
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
  const ModelConfig& config = *parsed;
  EXPECT_EQ(config.family, Family::kDeepseekV3);
  EXPECT_EQ(config.vocab_size, 129280);
  EXPECT_EQ(config.hidden_size, 7168);
  EXPECT_EQ(config.intermediate_size, 18432);
  EXPECT_EQ(config.moe_intermediate_size, 2048);
  EXPECT_EQ(config.num_hidden_layers, 61);
  EXPECT_EQ(config.q_lora_rank, 1536);
  EXPECT_EQ(config.qk_head_dim(), 192);
  EXPECT_EQ(config.gate.scoring, GateScoring::kSigmoid);
  EXPECT_EQ(config.gate.method, GateMethod::kNoAuxTc);
  EXPECT_EQ(config.gate.experts, 256);
  EXPECT_EQ(config.gate.experts_per_token, 8);
  EXPECT_EQ(config.gate.groups, 8);
  EXPECT_EQ(config.gate.kept_groups, 4);
  EXPECT_TRUE(config.gate.normalise);
  EXPECT_EQ(config.gate.scaling_factor, 2.5F);
  EXPECT_TRUE(config.rope.yarn);
  EXPECT_EQ(config.rope.factor, 40);
  EXPECT_EQ(config.rope.mscale_all_dim, 1);
  EXPECT_EQ(config.fp8_block, 128);
  EXPECT_FALSE(config.power_of_two_scales);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(1));
  EXPECT_FALSE(config.layer_has_experts(2));
  EXPECT_TRUE(config.layer_has_experts(3));
}

TEST(ModelConfig, ReadsDeepseekV2LiteAsPublished) {
  const auto parsed = parse_model_config(v2_lite(), nullptr);
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
  EXPECT_EQ(parsed->family, Family::kDeepseekV2);
  EXPECT_FALSE(parsed->q_lora_rank);
  EXPECT_EQ(parsed->gate.scoring, GateScoring::kSoftmax);
  EXPECT_EQ(parsed->gate.method, GateMethod::kGreedy);
  EXPECT_FALSE(parsed->gate.normalise);
  EXPECT_NEAR(parsed->rope.mscale, 0.707, 1e-12);
  EXPECT_FALSE(parsed->fp8_block);
  EXPECT_EQ(parsed->weight_dtype, DType::kBF16);
}

TEST(ModelConfig, V5SpellingMeansTheSameAsThePublishedOne) {
  // What transformers v5 leaves out and renames.
  boost::json::object v5 = with(v3(), R"({"scoring_func": null, "moe_layer_freq": null, "topk_method": null,
    "torch_dtype": null, "rope_scaling": null, "rope_theta": null, "dtype": "bfloat16", "head_dim": 64,
    "rope_interleave": true, "rope_parameters": {"beta_fast": 32, "beta_slow": 1, "factor": 40.0, "mscale": 1.0,
    "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "rope_theta": 10000.0, "rope_type": "yarn"}})");
  const auto published = parse_model_config(v3(), nullptr);
  const auto exported = parse_model_config(v5, nullptr);
  ASSERT_TRUE(exported.has_value()) << exported.error().message;
  EXPECT_EQ(exported->gate.scoring, published->gate.scoring);
  EXPECT_EQ(exported->gate.method, published->gate.method);
  EXPECT_EQ(exported->gate.normalise, published->gate.normalise);
  EXPECT_EQ(exported->moe_layer_freq, 1);
  EXPECT_EQ(exported->rope.yarn, published->rope.yarn);
  EXPECT_EQ(exported->rope.theta, published->rope.theta);
  EXPECT_EQ(exported->rope.factor, published->rope.factor);
  EXPECT_EQ(exported->rope.original_max_positions, published->rope.original_max_positions);
  EXPECT_EQ(exported->weight_dtype, published->weight_dtype);
}

TEST(ModelConfig, DefaultsFollowTheModelType) {
  const auto v2 = parse_model_config(with(v2_lite(), R"({"scoring_func": null, "topk_method": null,
    "norm_topk_prob": null, "rope_scaling": null, "torch_dtype": null, "n_group": null, "topk_group": null})"),
                                     nullptr);
  ASSERT_TRUE(v2.has_value()) << v2.error().message;
  EXPECT_EQ(v2->gate.scoring, GateScoring::kSoftmax);
  EXPECT_EQ(v2->gate.method, GateMethod::kGreedy);
  EXPECT_FALSE(v2->gate.normalise);
  EXPECT_FALSE(v2->rope.yarn);
  const auto kimi = parse_model_config(with(v3(), R"({"model_type": "kimi_k2", "scoring_func": null,
    "topk_method": null, "norm_topk_prob": null, "n_group": 1, "topk_group": 1, "n_routed_experts": 384})"),
                                       nullptr);
  ASSERT_TRUE(kimi.has_value()) << kimi.error().message;
  EXPECT_EQ(kimi->family, Family::kKimiK2);
  EXPECT_EQ(kimi->gate.method, GateMethod::kNoAuxTc);
  EXPECT_TRUE(kimi->gate.normalise);
}

TEST(ModelConfig, NoYarnInAnySpelling) {
  for (const char* changes :
       {R"({"rope_scaling": null})", R"({"rope_scaling": {"type": "default"}})",
        R"({"rope_scaling": {"rope_type": "default"}})", R"({"rope_scaling": {}})",
        R"({"rope_scaling": null, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}})"}) {
    const auto parsed = parse_model_config(with(v3(), changes), nullptr);
    ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
    EXPECT_FALSE(parsed->rope.yarn) << changes;
  }
}

TEST(ModelConfig, EosIdsOfBothFilesAreUnited) {
  const auto generation = object(R"({"eos_token_id": [163586, 163585], "max_length": 131072})");
  const auto kimi = with(v3(), R"({"model_type": "kimi_k2", "vocab_size": 163840, "bos_token_id": 163584,
                                   "eos_token_id": 163585})");
  const auto parsed = parse_model_config(kimi, &generation);
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
  EXPECT_THAT(parsed->eos_token_ids, ElementsAre(163585, 163586));
  EXPECT_EQ(parsed->bos_token_id, 163584);
}

TEST(ModelConfig, GenerationDefaultsAreOnlyWhatTheFileSays) {
  const auto generation = object(R"({"temperature": 0.6, "top_p": 0.95, "top_k": null, "do_sample": true})");
  const auto parsed = parse_model_config(v3(), &generation);
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
  EXPECT_DOUBLE_EQ(*parsed->generation.temperature, 0.6);
  EXPECT_DOUBLE_EQ(*parsed->generation.top_p, 0.95);
  EXPECT_FALSE(parsed->generation.top_k);
  EXPECT_FALSE(parsed->generation.repetition_penalty);
}

TEST(ModelConfig, PowerOfTwoScalesComeFromScaleFormat) {
  auto config = v3();
  config["quantization_config"].as_object()["scale_fmt"] = "ue8m0";
  const auto parsed = parse_model_config(config, nullptr);
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
  EXPECT_TRUE(parsed->power_of_two_scales);
}

struct Refusal {
  const char* changes;  // to the V3 config
  ErrorKind kind;
  const char* message;  // a part of it
};

TEST(ModelConfig, RefusesByNameAndReason) {
  const Refusal kRefusals[] = {
      {R"({"model_type": "deepseek_v32"})", ErrorKind::kUnsupported,
       R"(model_type: "deepseek_v32" is not supported by this version, which runs deepseek_v2, deepseek_v3 and kimi_k2)"},
      {R"({"model_type": "deepseek_v4"})", ErrorKind::kUnsupported,
       R"("deepseek_v4" is not supported by this version)"},
      {R"({"model_type": "deepseek_v41"})", ErrorKind::kUnsupported, R"("deepseek_v41" is not an architecture)"},
      {R"({"model_type": "llama"})", ErrorKind::kUnsupported, R"("llama" is not an architecture)"},
      {R"({"model_type": 3})", ErrorKind::kCorrupt, "model_type: must be a string, not 3"},
      {R"({"model_type": null})", ErrorKind::kCorrupt, "model_type: is missing"},
      {R"({"hidden_size": null})", ErrorKind::kCorrupt, "hidden_size: is missing"},
      {R"({"hidden_size": 0})", ErrorKind::kCorrupt, "hidden_size: must be an integer from 1 to 131072, not 0"},
      {R"({"hidden_size": -1})", ErrorKind::kCorrupt, "not -1"},
      {R"({"hidden_size": "64"})", ErrorKind::kCorrupt, R"(not "64")"},
      {R"({"hidden_size": 64.5})", ErrorKind::kCorrupt, "not 64.5"},
      {R"({"hidden_size": true})", ErrorKind::kCorrupt, "not true"},
      {R"({"hidden_size": [7168]})", ErrorKind::kCorrupt, "not an array of 1"},
      {R"({"vocab_size": 9223372036854775807})", ErrorKind::kCorrupt, "vocab_size: must be an integer from 1 to"},
      {R"({"vocab_size": 18446744073709551615})", ErrorKind::kCorrupt, "not 18446744073709551615"},
      {R"({"vocab_size": 1e308})", ErrorKind::kCorrupt, "vocab_size"},
      {R"({"num_hidden_layers": 4294967297})", ErrorKind::kCorrupt, "num_hidden_layers"},
      {R"({"qk_rope_head_dim": 63})", ErrorKind::kCorrupt, "qk_rope_head_dim: must be even, not 63"},
      {R"({"q_lora_rank": 0})", ErrorKind::kCorrupt, "q_lora_rank"},
      {R"({"first_k_dense_replace": 62})", ErrorKind::kCorrupt, "there are only 61 layers"},
      {R"({"moe_layer_freq": 0})", ErrorKind::kCorrupt, "moe_layer_freq"},
      {R"({"n_routed_experts": 250})", ErrorKind::kCorrupt, "n_group: 8 groups do not divide 250 experts"},
      {R"({"n_group": 256, "topk_group": 8})", ErrorKind::kCorrupt, "have one expert each"},
      {R"({"n_group": null})", ErrorKind::kCorrupt, "n_group: is missing"},
      {R"({"topk_group": 9})", ErrorKind::kCorrupt, "topk_group: must be an integer from 1 to 8, not 9"},
      {R"({"num_experts_per_tok": 129})", ErrorKind::kCorrupt, "num_experts_per_tok: is 129, but the 4 groups"},
      {R"({"num_experts_per_tok": 0})", ErrorKind::kCorrupt, "num_experts_per_tok"},
      {R"({"routed_scaling_factor": 1e999})", ErrorKind::kCorrupt, "routed_scaling_factor"},
      {R"({"scoring_func": "softmax"})", ErrorKind::kUnsupported, "disagree on whether routed_scaling_factor"},
      {R"({"scoring_func": "sqrtsoftplus"})", ErrorKind::kUnsupported, "known are softmax, sigmoid"},
      {R"({"topk_method": "random"})", ErrorKind::kUnsupported, R"(topk_method: "random" is not supported)"},
      {R"({"hidden_act": "gelu"})", ErrorKind::kUnsupported, R"(hidden_act: "gelu" is not supported, only silu)"},
      {R"({"attention_bias": true})", ErrorKind::kUnsupported, "attention_bias: true is not supported"},
      {R"({"rope_interleave": false})", ErrorKind::kUnsupported, "rope_interleave"},
      {R"({"torch_dtype": "int8"})", ErrorKind::kUnsupported, "torch_dtype"},
      {R"({"rope_theta": 1})", ErrorKind::kCorrupt, "rope_theta"},
      {R"({"rope_scaling": {"type": "linear", "factor": 2}})", ErrorKind::kUnsupported, R"("linear" is not supported)"},
      {R"({"rope_scaling": {"factor": 2}})", ErrorKind::kCorrupt, "rope_scaling.rope_type: is missing"},
      {R"({"rope_scaling": {"type": "yarn"}})", ErrorKind::kCorrupt, "rope_scaling.factor: is missing"},
      {R"({"rope_scaling": {"type": "yarn", "factor": 40}})", ErrorKind::kCorrupt,
       "rope_scaling.original_max_position_embeddings: is missing"},
      {R"({"rope_scaling": "yarn"})", ErrorKind::kCorrupt, "rope_scaling: must be an object"},
      {R"({"eos_token_id": 129280})", ErrorKind::kCorrupt, "eos_token_id: must be an integer from 0 to 129279"},
      {R"({"eos_token_id": [1, -1]})", ErrorKind::kCorrupt, "eos_token_id: element 1: must be"},
      {R"({"eos_token_id": "</s>"})", ErrorKind::kCorrupt, "eos_token_id"},
      {R"({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized",
           "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "group_size": 32}}}}})",
       ErrorKind::kUnsupported, "compressed-tensors pack-quantized INT4 is not supported"},
      {R"({"quantization_config": {"quant_method": "awq"}})", ErrorKind::kUnsupported, "awq is not supported"},
      {R"({"quantization_config": {"bits": 4}})", ErrorKind::kCorrupt, "quantization_config.quant_method: is missing"},
      {R"({"quantization_config": {"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]}})",
       ErrorKind::kUnsupported, R"(quantization_config.fmt: "e5m2")"},
      {R"({"quantization_config": {"quant_method": "fp8", "activation_scheme": "static",
                                   "weight_block_size": [128, 128]}})",
       ErrorKind::kUnsupported, R"("static" is not supported)"},
      {R"({"quantization_config": {"quant_method": "fp8"}})", ErrorKind::kUnsupported, "FP8 per tensor"},
      {R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [1, 128]}})", ErrorKind::kUnsupported,
       "[1, 128] is not supported"},
  };
  for (const Refusal& refused : kRefusals) {
    const Error error = refusal(with(v3(), refused.changes));
    EXPECT_EQ(error.kind, refused.kind) << refused.changes << "\n" << error.message;
    EXPECT_THAT(error.message, HasSubstr(refused.message)) << refused.changes;
    EXPECT_THAT(error.message, HasSubstr("config.json: "));
  }
  fmt::print("{} configurations refused\n", std::size(kRefusals));
}

TEST(ModelConfig, NoAcceptedSizesOverflow) {
  // The largest accepted model: its bytes still fit int64.
  const auto parsed = parse_model_config(with(v3(), R"({"vocab_size": 16777216, "hidden_size": 131072,
    "intermediate_size": 1048576, "moe_intermediate_size": 131072, "num_hidden_layers": 1024,
    "n_routed_experts": 4096, "num_attention_heads": 4096, "qk_nope_head_dim": 4096, "qk_rope_head_dim": 4096,
    "v_head_dim": 4096, "kv_lora_rank": 131072, "q_lora_rank": 131072, "n_shared_experts": 64})"),
                                         nullptr);
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
  const auto& c = *parsed;
  const auto wide = [](auto... factors) { return (static_cast<long double>(factors) * ...); };
  const long double bytes =
      wide(c.num_hidden_layers, c.gate.experts + c.n_shared_experts, 3, c.hidden_size, c.moe_intermediate_size, 4) +
      wide(c.num_hidden_layers, c.num_attention_heads, 2 * c.qk_head_dim() + c.v_head_dim, c.kv_lora_rank, 4) +
      wide(c.vocab_size, c.hidden_size, 8);
  EXPECT_LT(bytes, static_cast<long double>(std::numeric_limits<int64_t>::max()));
}

TEST(ModelConfig, ReadsTheGoldensAndTheDemoModels) {
  struct Golden {
    const char* folder;
    GateMethod method;
    bool yarn;
  };
  for (const Golden& golden :
       {Golden{"tests/data/goldens/v2-lite", GateMethod::kGreedy, true},
        Golden{"tests/data/goldens/v2", GateMethod::kGroupLimitedGreedy, true},
        Golden{"tests/data/goldens/v3", GateMethod::kNoAuxTc, true},
        Golden{"tests/data/goldens/kimi-k2", GateMethod::kNoAuxTc, true},
        Golden{"models/demo", GateMethod::kNoAuxTc, false}, Golden{"models/demo-fp8", GateMethod::kNoAuxTc, false}}) {
    const auto parsed = read_model_config(kSource / golden.folder);
    ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
    EXPECT_EQ(parsed->gate.method, golden.method) << golden.folder;
    EXPECT_EQ(parsed->rope.yarn, golden.yarn) << golden.folder;
    EXPECT_THAT(parsed->eos_token_ids, ElementsAre(1));
  }
}

TEST(ModelConfig, OverridesReplaceTopLevelFieldsInEitherSpelling) {
  const auto folder = kSource / "tests/data/goldens/v3";  // v5 spelling
  const auto parsed =
      read_model_config(folder, object(R"({"num_hidden_layers": 2, "torch_dtype": "float32", "rope_theta": 50000,
                         "rope_scaling": {"type": "yarn", "factor": 8, "original_max_position_embeddings": 128}})"));
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message;
  EXPECT_EQ(parsed->num_hidden_layers, 2);
  EXPECT_EQ(parsed->weight_dtype, DType::kF32);
  EXPECT_EQ(parsed->rope.factor, 8);
  EXPECT_EQ(parsed->rope.theta, 50000);

  const auto only_theta = read_model_config(folder, object(R"({"rope_theta": 50000})"));
  ASSERT_TRUE(only_theta.has_value()) << only_theta.error().message;
  EXPECT_EQ(only_theta->rope.theta, 50000);
  EXPECT_EQ(only_theta->rope.factor, 40);

  const auto no_yarn = read_model_config(folder, object(R"({"rope_scaling": null})"));
  ASSERT_TRUE(no_yarn.has_value()) << no_yarn.error().message;
  EXPECT_FALSE(no_yarn->rope.yarn);
  EXPECT_EQ(no_yarn->rope.theta, 10000);
}

TEST(ModelConfig, MissingAndBrokenFilesAreNamed) {
  const testing_files::TemporaryFolder temporary;
  const std::filesystem::path& folder = temporary.path();
  EXPECT_EQ(read_model_config(folder).error().kind, ErrorKind::kNotFound);
  EXPECT_THAT(read_model_config(folder).error().message, HasSubstr((folder / "config.json").string()));

  std::ofstream(folder / "config.json") << R"({"model_type": "deepseek_v3",})";
  EXPECT_EQ(read_model_config(folder).error().kind, ErrorKind::kCorrupt);
  EXPECT_THAT(read_model_config(folder).error().message, HasSubstr("config.json: not valid JSON"));

  std::ofstream(folder / "config.json") << "[]";
  EXPECT_THAT(read_model_config(folder).error().message, HasSubstr("must be a JSON object"));

  std::ofstream(folder / "config.json") << boost::json::serialize(v3());
  std::ofstream(folder / "generation_config.json") << R"({"temperature": "hot"})";
  EXPECT_THAT(read_model_config(folder).error().message,
              HasSubstr("generation_config.json: temperature: must be a number"));
}

}  // namespace
}  // namespace plait
