#include "tests/engine/exact_model.h"

#include <map>
#include <mutex>
#include <random>

#include "tests/model/model_runner.h"
#include "tests/model/random_checkpoint.h"

namespace plait::testing {
namespace {

constexpr size_t kSequences = 32;
constexpr int64_t kPrompts[] = {5, 12, 3, 31, 9, 1, 40, 2, 17, 7, 97};
constexpr int64_t kGenerated = 8;

ModelConfig config_of(ExactFamily family, int64_t heads, int64_t layers) {
  ModelConfig config = tiny_config();
  config.vocab_size = 30;
  config.hidden_size = 8;
  config.intermediate_size = 16;
  config.moe_intermediate_size = 8;
  config.num_hidden_layers = layers;
  config.first_k_dense_replace = family == ExactFamily::kV3 ? 2 : 1;
  config.num_attention_heads = heads;
  config.q_lora_rank = 8;
  config.kv_lora_rank = 8;
  config.qk_nope_head_dim = 2;
  config.qk_rope_head_dim = 2;
  config.v_head_dim = 2;
  config.gate.experts_per_token = 2;
  config.gate.experts = static_cast<int32_t>(2 * heads);
  config.gate.groups = heads % 2 == 0 ? 4 : static_cast<int32_t>(heads);
  if (family == ExactFamily::kV2Lite) {
    set_v2_lite(config);
    config.gate.groups = config.gate.kept_groups = 1;
  }
  config.weight_dtype = DType::kF32;
  return config;
}

// Multiples of `unit`, as large as keeps activations near 1.
struct Dyadic {
  int most = 1;  // in units
  double unit = 1;
};
Dyadic dyadic_of(const std::string& name, int64_t inputs) {
  if (name.ends_with("e_score_correction_bias")) return {2, 0.125};
  if (name.ends_with("mlp.gate.weight")) return {3, 0.125};
  if (name.ends_with("embed_tokens.weight")) return {3, 0.5};
  return {1, std::exp2(-std::round(std::log2(std::sqrt(static_cast<double>(inputs) * 2 / 3))))};
}

TensorSet checkpoint(const ModelConfig& config) {
  std::mt19937 generator(static_cast<uint32_t>(config.num_hidden_layers * 100 + config.num_attention_heads));
  TensorSet set;
  for (const WeightRequest& request : make_model(config, exact_options()).value()->weight_requests()) {
    int64_t count = 1;
    for (const int64_t extent : request.shape) count *= extent;
    const bool is_norm = request.name.ends_with("norm.weight");
    const Dyadic dyadic = dyadic_of(request.name, request.shape.back());
    std::vector<float> values(count);
    for (float& value : values) {
      const auto drawn = static_cast<int>(generator() % static_cast<uint32_t>(2 * dyadic.most + 1)) - dyadic.most;
      value = is_norm ? 1 + 0.25f * static_cast<float>(drawn) : static_cast<float>(drawn * dyadic.unit);
    }
    set.put(request.name, request.shape, values, DType::kF32);
  }
  return set;
}

}  // namespace

ExactModel ExactModel::make(ExactFamily family, int64_t heads, int64_t layers) {
  ExactModel model;
  model.config = config_of(family, heads, layers);
  model.weights = checkpoint(model.config);
  std::mt19937 generator(11);
  for (size_t i = 0; i < kSequences; ++i) {
    ExactSequence& sequence = model.sequences.emplace_back();
    sequence.prompt_tokens = kPrompts[i % std::size(kPrompts)];
    for (int64_t token = 0; token < sequence.prompt_tokens + kGenerated; ++token)
      sequence.tokens.push_back(static_cast<int32_t>(generator() % static_cast<uint32_t>(model.config.vocab_size)));
  }
  std::vector<std::vector<float>> logits = model.one_rank(kSequences);
  for (size_t i = 0; i < kSequences; ++i) model.sequences[i].logits = std::move(logits[i]);
  return model;
}

std::vector<std::vector<float>> ExactModel::one_rank(size_t count) const {
  ModelRunner runner(config, weights, exact_options());
  std::vector<std::vector<float>> logits;
  for (const ExactSequence& sequence : std::span(sequences).first(count)) {
    TestSequence pages;
    const std::span<const int32_t> tokens(sequence.tokens);
    Recorded recorded = runner.append(pages, tokens.first(sequence.prompt_tokens), sequence.prompt_tokens);
    recorded.append(runner.append_in_chunks(pages, tokens.subspan(sequence.prompt_tokens), 1, sequence.prompt_tokens));
    logits.push_back(std::move(recorded.logits));
    runner.release(pages);
  }
  return logits;
}

std::span<const float> ExactModel::expected(int sequence, int64_t position) const {
  const std::span<const float> logits(sequences[sequence].logits);
  return logits.subspan(position * config.vocab_size, config.vocab_size);
}

const ExactModel& exact_model(ExactFamily family, const ParallelConfig& parallel) {
  static std::mutex mutex;
  static std::map<std::tuple<ExactFamily, int64_t, int64_t>, ExactModel> models;
  // Heads that the ranks of a stage can divide in whatever way, and a layer for each stage.
  const int64_t tp = parallel.tp_size, heads = tp == 3 || tp == 6 ? 6 : tp == 5 || tp == 7 ? tp : 8;
  const int64_t layers = std::max(3, parallel.pp_size);
  const std::lock_guard lock(mutex);
  const auto found = models.find({family, heads, layers});
  if (found != models.end()) return found->second;
  return models.emplace(std::tuple(family, heads, layers), ExactModel::make(family, heads, layers)).first->second;
}

}  // namespace plait::testing
