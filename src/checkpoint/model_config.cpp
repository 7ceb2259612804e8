#include "checkpoint/model_config.h"

#include "base/json.h"

namespace plait {
namespace {

using json::Fields;
using json::IntegerRange;
using json::NumberRange;

// Upper bounds of sizes: several times what any published model has, and small enough that no product of a weight's
// dimensions, nor the bytes of a whole model, leaves 63 bits.
constexpr int64_t kMaxVocabulary = 1 << 24;
constexpr int64_t kMaxWidth = 1 << 17;  // of the hidden state, one expert, a low-rank projection
constexpr int64_t kMaxFfnWidth = 1 << 20;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 4096;
constexpr int64_t kMaxExperts = 4096;
constexpr int64_t kMaxSharedExperts = 64;
constexpr int64_t kMaxPositions = int64_t{1} << 30;
constexpr int64_t kFp8Block = 128;

struct FamilyRow {
  std::string_view model_type;
  Family family;
  // What transformers' v5 exporter leaves out because the class implies it.
  std::string_view scoring_func;
  std::string_view topk_method;
  bool norm_topk_prob;
};
constexpr FamilyRow kFamilies[] = {
    {"deepseek_v2", Family::kDeepseekV2, "softmax", "greedy", false},
    {"deepseek_v3", Family::kDeepseekV3, "sigmoid", "noaux_tc", true},
    {"kimi_k2", Family::kKimiK2, "sigmoid", "noaux_tc", true},
};
constexpr std::string_view kLaterModelTypes[] = {"deepseek_v32", "deepseek_v4"};

struct SizeRow {
  std::string_view name;
  int64_t ModelConfig::*field;
  int64_t min, max;
  std::optional<int64_t> fallback;  // none: the field is required
};
constexpr SizeRow kSizes[] = {
    {"vocab_size", &ModelConfig::vocab_size, 1, kMaxVocabulary, {}},
    {"hidden_size", &ModelConfig::hidden_size, 1, kMaxWidth, {}},
    {"intermediate_size", &ModelConfig::intermediate_size, 1, kMaxFfnWidth, {}},
    {"num_hidden_layers", &ModelConfig::num_hidden_layers, 1, kMaxLayers, {}},
    {"num_attention_heads", &ModelConfig::num_attention_heads, 1, kMaxHeads, {}},
    {"kv_lora_rank", &ModelConfig::kv_lora_rank, 1, kMaxWidth, {}},
    {"qk_nope_head_dim", &ModelConfig::qk_nope_head_dim, 1, kMaxHeadDim, {}},
    {"qk_rope_head_dim", &ModelConfig::qk_rope_head_dim, 2, kMaxHeadDim, {}},
    {"v_head_dim", &ModelConfig::v_head_dim, 1, kMaxHeadDim, {}},
    {"max_position_embeddings", &ModelConfig::max_position_embeddings, 1, kMaxPositions, {}},
    {"first_k_dense_replace", &ModelConfig::first_k_dense_replace, 0, kMaxLayers, 0},
    {"moe_layer_freq", &ModelConfig::moe_layer_freq, 1, kMaxLayers, 1},
    {"n_shared_experts", &ModelConfig::n_shared_experts, 0, kMaxSharedExperts, 0},
};

// Fields whose other value would mean a computation that this program does not have.
struct FixedRow {
  std::string_view name;
  bool value;
  std::string_view reason;
};
constexpr FixedRow kFixedBooleans[] = {
    {"attention_bias", false, "projections with biases are not supported"},
    {"mlp_bias", false, "projections with biases are not supported"},
    {"rope_interleave", true, "only interleaved rotary pairs are supported for these models"},
};

template <typename Value>
struct Word {
  std::string_view word;
  Value value;
};
constexpr Word<GateScoring> kScorings[] = {{"softmax", GateScoring::kSoftmax}, {"sigmoid", GateScoring::kSigmoid}};
constexpr Word<GateMethod> kMethods[] = {{"greedy", GateMethod::kGreedy},
                                         {"group_limited_greedy", GateMethod::kGroupLimitedGreedy},
                                         {"noaux_tc", GateMethod::kNoAuxTc}};
constexpr Word<DType> kWeightDTypes[] = {
    {"bfloat16", DType::kBF16}, {"float16", DType::kF16}, {"float32", DType::kF32}};

Error unsupported_field(const Fields& fields, std::string_view key, std::string_view what) {
  return unsupported(fmt::format("{}: {}", fields.path_of(key), what));
}

template <typename Value, size_t count>
Result<Value> parse_word(const Fields& fields, std::string_view key, std::string_view word,
                         const Word<Value> (&words)[count]) {
  std::string known;
  for (const Word<Value>& row : words) {
    if (row.word == word) return row.value;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", row.word);
  }
  return unsupported_field(fields, key, fmt::format("\"{}\" is not supported; known are {}", word, known));
}

Result<const FamilyRow*> parse_family(const Fields& fields) {
  PLAIT_ASSIGN_OR_RETURN(const std::string model_type, fields.required_string("model_type"));
  for (const FamilyRow& row : kFamilies)
    if (row.model_type == model_type) return &row;
  constexpr std::string_view kKnown = "deepseek_v2, deepseek_v3 and kimi_k2";
  for (std::string_view later : kLaterModelTypes)
    if (later == model_type)
      return unsupported_field(
          fields, "model_type",
          fmt::format("\"{}\" is not supported by this version, which runs {}", model_type, kKnown));
  return unsupported_field(fields, "model_type",
                           fmt::format("{} is not an architecture of this program, which runs {}",
                                       json::describe(boost::json::value(model_type)), kKnown));
}

Status parse_sizes(const Fields& fields, ModelConfig& config) {
  for (const SizeRow& row : kSizes) {
    PLAIT_ASSIGN_OR_RETURN(const auto value, fields.integer(row.name, IntegerRange{row.min, row.max}));
    if (!value && !row.fallback) return fields.error(row.name, "is missing");
    config.*row.field = value ? *value : *row.fallback;
  }
  PLAIT_ASSIGN_OR_RETURN(config.q_lora_rank, fields.integer("q_lora_rank", IntegerRange{1, kMaxWidth}));
  if (config.qk_rope_head_dim % 2 != 0)
    return fields.error("qk_rope_head_dim", fmt::format("must be even, not {}", config.qk_rope_head_dim));
  if (config.first_k_dense_replace > config.num_hidden_layers)
    return fields.error("first_k_dense_replace", fmt::format("is {}, but there are only {} layers",
                                                             config.first_k_dense_replace, config.num_hidden_layers));
  return {};
}

Status refuse_other_computations(const Fields& fields) {
  for (const FixedRow& row : kFixedBooleans) {
    PLAIT_ASSIGN_OR_RETURN(const auto value, fields.boolean(row.name));
    if (value.value_or(row.value) != row.value)
      return unsupported_field(fields, row.name, fmt::format("{} is not supported: {}", *value, row.reason));
  }
  PLAIT_ASSIGN_OR_RETURN(const auto activation, fields.string("hidden_act"));
  if (activation.value_or("silu") != "silu")
    return unsupported_field(fields, "hidden_act", fmt::format("\"{}\" is not supported, only silu", *activation));
  return {};
}

// Expert groups steer the choice only with the methods that limit it to groups.
Status parse_groups(const Fields& fields, GateConfig& gate) {
  if (gate.method == GateMethod::kGreedy) return {};
  PLAIT_ASSIGN_OR_RETURN(const int64_t groups, fields.required_integer("n_group", {1, gate.experts}));
  PLAIT_ASSIGN_OR_RETURN(const int64_t kept, fields.required_integer("topk_group", {1, groups}));
  if (gate.experts % groups != 0)
    return fields.error("n_group", fmt::format("{} groups do not divide {} experts", groups, gate.experts));
  if (gate.method == GateMethod::kNoAuxTc && groups > 1 && gate.experts / groups < 2)
    return fields.error("n_group",
                        fmt::format("noaux_tc adds the two best scores of a group, but {} groups of {} experts "
                                    "have one expert each",
                                    groups, gate.experts));
  gate.groups = static_cast<int32_t>(groups);
  gate.kept_groups = static_cast<int32_t>(kept);
  return {};
}

Status parse_gate(const Fields& fields, const FamilyRow& family, ModelConfig& config) {
  GateConfig& gate = config.gate;
  PLAIT_ASSIGN_OR_RETURN(const auto experts, fields.integer("n_routed_experts", {1, kMaxExperts}));
  if (!experts) return {};  // every layer is dense
  gate.experts = static_cast<int32_t>(*experts);

  PLAIT_ASSIGN_OR_RETURN(config.moe_intermediate_size,
                         fields.required_integer("moe_intermediate_size", {1, kMaxWidth}));
  PLAIT_ASSIGN_OR_RETURN(const auto scoring, fields.string("scoring_func"));
  PLAIT_ASSIGN_OR_RETURN(
      gate.scoring,
      parse_word(fields, "scoring_func", scoring ? std::string_view(*scoring) : family.scoring_func, kScorings));
  PLAIT_ASSIGN_OR_RETURN(const auto method, fields.string("topk_method"));
  PLAIT_ASSIGN_OR_RETURN(gate.method, parse_word(fields, "topk_method",
                                                 method ? std::string_view(*method) : family.topk_method, kMethods));
  PLAIT_ASSIGN_OR_RETURN(const auto normalise, fields.boolean("norm_topk_prob"));
  gate.normalise = normalise.value_or(family.norm_topk_prob);
  if (gate.normalise && gate.scoring == GateScoring::kSoftmax)
    return unsupported_field(fields, "norm_topk_prob",
                             "true is not supported with softmax scores: no published model has it, and the public "
                             "implementations disagree on whether routed_scaling_factor would still apply");
  PLAIT_ASSIGN_OR_RETURN(const double scaling, fields.required_number("routed_scaling_factor", {1e-6, 1e6}));
  gate.scaling_factor = static_cast<float>(scaling);

  PLAIT_RETURN_IF_ERROR(parse_groups(fields, gate));
  PLAIT_ASSIGN_OR_RETURN(const int64_t experts_per_token,
                         fields.required_integer("num_experts_per_tok", {1, *experts}));
  const int64_t reachable = *experts / gate.groups * gate.kept_groups;
  if (experts_per_token > reachable)
    return fields.error("num_experts_per_tok",
                        fmt::format("is {}, but the {} groups that topk_group keeps have {} experts", experts_per_token,
                                    gate.kept_groups, reachable));
  gate.experts_per_token = static_cast<int32_t>(experts_per_token);
  return {};
}

Status parse_yarn(const Fields& scaling, RopeConfig& rope) {
  rope.yarn = true;
  PLAIT_ASSIGN_OR_RETURN(rope.factor, scaling.required_number("factor", {1, 1e6}));
  PLAIT_ASSIGN_OR_RETURN(rope.original_max_positions,
                         scaling.required_integer("original_max_position_embeddings", {1, kMaxPositions}));
  struct Row {
    std::string_view name;
    double RopeConfig::*field;
    NumberRange range;
  };
  constexpr Row kNumbers[] = {{"beta_fast", &RopeConfig::beta_fast, {1e-6, 1e6}},
                              {"beta_slow", &RopeConfig::beta_slow, {1e-6, 1e6}},
                              {"mscale", &RopeConfig::mscale, {0, 1e3}},
                              {"mscale_all_dim", &RopeConfig::mscale_all_dim, {0, 1e3}}};
  for (const Row& row : kNumbers) {
    PLAIT_ASSIGN_OR_RETURN(const auto value, scaling.number(row.name, row.range));
    if (value) rope.*row.field = *value;
  }
  if (scaling.has("attention_factor"))
    return unsupported_field(scaling, "attention_factor",
                             "is not supported: these models derive it from mscale and mscale_all_dim");
  PLAIT_ASSIGN_OR_RETURN(const auto truncate, scaling.boolean("truncate"));
  if (!truncate.value_or(true)) return unsupported_field(scaling, "truncate", "false is not supported");
  return {};
}

// Published: rope_theta and rope_scaling {type, ...} or null. transformers v5: rope_parameters {rope_theta, rope_type,
// ...}; it wins where both stand.
Status parse_rope(const Fields& fields, RopeConfig& rope) {
  const NumberRange theta_range{1.0001, 1e12};  // YaRN divides by ln(theta)
  PLAIT_ASSIGN_OR_RETURN(auto theta, fields.number("rope_theta", theta_range));
  PLAIT_ASSIGN_OR_RETURN(auto scaling, fields.object("rope_parameters"));
  if (scaling) {
    PLAIT_ASSIGN_OR_RETURN(const auto inner_theta, scaling->number("rope_theta", theta_range));
    if (inner_theta) theta = inner_theta;
  } else {
    PLAIT_ASSIGN_OR_RETURN(scaling, fields.object("rope_scaling"));
  }
  rope.theta = theta.value_or(RopeConfig{}.theta);
  if (!scaling) return {};

  PLAIT_ASSIGN_OR_RETURN(auto type, scaling->string("rope_type"));
  if (!type) {
    PLAIT_ASSIGN_OR_RETURN(type, scaling->string("type"));
  }
  if (!type && scaling->has("factor")) return scaling->error("rope_type", "is missing, although there is a factor");
  if (!type || *type == "default") return {};
  if (*type != "yarn")
    return unsupported_field(*scaling, "rope_type",
                             fmt::format("\"{}\" is not supported, only yarn and default", *type));
  return parse_yarn(*scaling, rope);
}

// "compressed-tensors pack-quantized, 4 bits" and the like, as far as the object says.
std::string name_of_quantisation(const Fields& quantisation, const std::string& method) {
  std::string name = method;
  if (auto format = quantisation.string("format"); format.has_value() && *format) name += " " + **format;
  auto groups = quantisation.object("config_groups");
  if (groups.has_error() || !*groups) return name;
  for (const auto& [key, group] : (*groups)->raw()) {
    const boost::json::value* weights = group.is_object() ? group.get_object().if_contains("weights") : nullptr;
    if (!weights || !weights->is_object()) continue;
    const Fields fields(weights->get_object());
    auto bits = fields.integer("num_bits");
    auto type = fields.string("type");
    if (bits.has_value() && *bits && type.has_value())
      return fmt::format("{} {}{}", name, type->value_or("int") == "float" ? "FP" : "INT", **bits);
  }
  return name;
}

Status parse_quantisation(const Fields& fields, ModelConfig& config) {
  PLAIT_ASSIGN_OR_RETURN(const auto quantisation, fields.object("quantization_config"));
  if (!quantisation) return {};
  constexpr std::string_view kKnown = "only FP8 e4m3 weights in blocks of 128 x 128 with dynamic activation scales";
  PLAIT_ASSIGN_OR_RETURN(const std::string method, quantisation->required_string("quant_method"));
  if (method != "fp8")
    return unsupported_field(
        fields, "quantization_config",
        fmt::format("{} is not supported, {}", name_of_quantisation(*quantisation, method), kKnown));

  const std::pair<std::string_view, std::string_view> kWords[] = {{"fmt", "e4m3"}, {"activation_scheme", "dynamic"}};
  for (const auto& [key, word] : kWords) {
    PLAIT_ASSIGN_OR_RETURN(const auto value, quantisation->string(key));
    if (value.value_or(std::string(word)) != word)
      return unsupported_field(*quantisation, key, fmt::format("\"{}\" is not supported, {}", *value, kKnown));
  }
  PLAIT_ASSIGN_OR_RETURN(const auto block, quantisation->integers("weight_block_size", {}, 8));
  if (!block)
    return unsupported_field(*quantisation, "weight_block_size",
                             fmt::format("is missing: this is FP8 per tensor; {}", kKnown));
  if (*block != std::vector<int64_t>{kFp8Block, kFp8Block})
    return unsupported_field(*quantisation, "weight_block_size",
                             fmt::format("[{}] is not supported, {}", fmt::join(*block, ", "), kKnown));
  config.fp8_block = kFp8Block;

  PLAIT_ASSIGN_OR_RETURN(const auto scale_format, quantisation->string("scale_fmt"));
  if (scale_format && *scale_format != "ue8m0")
    return unsupported_field(*quantisation, "scale_fmt",
                             fmt::format("\"{}\" is not supported, only ue8m0", *scale_format));
  config.power_of_two_scales = scale_format.has_value();
  return {};
}

Status parse_weight_dtype(const Fields& fields, ModelConfig& config) {
  const std::string_view key = fields.has("dtype") ? "dtype" : "torch_dtype";
  PLAIT_ASSIGN_OR_RETURN(const auto word, fields.string(key));
  if (!word) return {};
  PLAIT_ASSIGN_OR_RETURN(config.weight_dtype, parse_word(fields, key, *word, kWeightDTypes));
  return {};
}

Status add_token_ids(const Fields& fields, ModelConfig& config) {
  const IntegerRange ids{0, config.vocab_size - 1};
  PLAIT_ASSIGN_OR_RETURN(const auto eos, fields.integers("eos_token_id", ids, 256));
  for (const int64_t id : eos.value_or(std::vector<int64_t>{})) {
    auto& known = config.eos_token_ids;
    if (std::find(known.begin(), known.end(), id) == known.end()) known.push_back(static_cast<int32_t>(id));
  }
  PLAIT_ASSIGN_OR_RETURN(const auto bos, fields.integer("bos_token_id", ids));
  if (bos && !config.bos_token_id) config.bos_token_id = static_cast<int32_t>(*bos);
  return {};
}

Status parse_generation(const Fields& fields, ModelConfig& config) {
  PLAIT_RETURN_IF_ERROR(add_token_ids(fields, config));
  auto& generation = config.generation;
  PLAIT_ASSIGN_OR_RETURN(generation.temperature, fields.number("temperature", {0, 1e3}));
  PLAIT_ASSIGN_OR_RETURN(generation.top_p, fields.number("top_p", {1e-6, 1}));
  PLAIT_ASSIGN_OR_RETURN(generation.top_k, fields.integer("top_k", {-1, kMaxVocabulary}));
  PLAIT_ASSIGN_OR_RETURN(generation.repetition_penalty, fields.number("repetition_penalty", {1e-3, 1e3}));
  return {};
}

Status parse_config(const Fields& fields, ModelConfig& config) {
  PLAIT_ASSIGN_OR_RETURN(const FamilyRow* family, parse_family(fields));
  config.family = family->family;
  config.model_type = family->model_type;
  PLAIT_RETURN_IF_ERROR(parse_sizes(fields, config));
  PLAIT_RETURN_IF_ERROR(refuse_other_computations(fields));
  PLAIT_RETURN_IF_ERROR(parse_gate(fields, *family, config));
  PLAIT_RETURN_IF_ERROR(parse_rope(fields, config.rope));
  PLAIT_RETURN_IF_ERROR(parse_quantisation(fields, config));
  PLAIT_RETURN_IF_ERROR(parse_weight_dtype(fields, config));
  PLAIT_RETURN_IF_ERROR(add_token_ids(fields, config));
  PLAIT_ASSIGN_OR_RETURN(const auto epsilon, fields.number("rms_norm_eps", {0, 1}));
  config.rms_norm_eps = epsilon.value_or(config.rms_norm_eps);
  PLAIT_ASSIGN_OR_RETURN(const auto tied, fields.boolean("tie_word_embeddings"));
  config.tie_word_embeddings = tied.value_or(false);
  return {};
}

// An override in one spelling must not lose against the file's other spelling.
void apply_overrides(const boost::json::object& overrides, boost::json::object& config) {
  constexpr std::pair<std::string_view, std::string_view> kSpellings[] = {{"torch_dtype", "dtype"},
                                                                          {"rope_scaling", "rope_parameters"}};
  if (boost::json::value* parameters = config.if_contains("rope_parameters")) {
    // A new rope_scaling comes without theta, a new rope_theta without the rest.
    if (boost::json::object* object = parameters->if_object()) {
      if (const boost::json::value* theta = object->if_contains("rope_theta");
          theta && overrides.contains("rope_scaling"))
        config.insert_or_assign("rope_theta", *theta);
      if (overrides.contains("rope_theta")) object->erase("rope_theta");
    }
  }
  for (const auto& [old_name, new_name] : kSpellings) {
    if (overrides.contains(old_name)) config.erase(new_name);
    if (overrides.contains(new_name)) config.erase(old_name);
  }
  for (const auto& [key, value] : overrides) config.insert_or_assign(key, value);
}

}  // namespace

Result<ModelConfig> parse_model_config(const boost::json::object& config,
                                       const boost::json::object* generation_config) {
  ModelConfig result;
  if (Status status = parse_config(Fields(config, ErrorKind::kCorrupt), result); status.has_error())
    return std::move(status).error().within("config.json");
  if (!generation_config) return result;
  if (Status status = parse_generation(Fields(*generation_config, ErrorKind::kCorrupt), result); status.has_error())
    return std::move(status).error().within("generation_config.json");
  return result;
}

Result<ModelConfig> read_model_config(const std::filesystem::path& folder, const boost::json::object& overrides) {
  PLAIT_ASSIGN_OR_RETURN(boost::json::object config, json::read_object_file(folder / "config.json"));
  apply_overrides(overrides, config);

  std::optional<boost::json::object> generation;
  std::error_code ignored;
  if (const auto file = folder / "generation_config.json"; std::filesystem::exists(file, ignored)) {
    PLAIT_ASSIGN_OR_RETURN(generation, json::read_object_file(file));
  }
  auto parsed = parse_model_config(config, generation ? &*generation : nullptr);
  if (parsed.has_error()) return std::move(parsed).error().within(folder.string());
  return parsed;
}

}  // namespace plait
