#include "bench/model_bench.h"

#include <boost/json/object.hpp>

#include "base/units.h"
#include "engine/available_memory.h"

namespace plait {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kMostLayers = 8;
constexpr int64_t kLeastLayers = 3;
constexpr int64_t kFewestSteps = 3;
constexpr int64_t kMostSteps = 1000;

double mean(double a, double b) {
  return (a + b) / 2;
}

template <typename TimeStep>
void measure(BenchRow& row, double seconds, const std::function<Ceilings()>& ceilings, TimeStep&& time_step) {
  time_step();  // the first touches fresh scratch memory
  std::vector<TimedStep> steps;
  const Ceilings before = ceilings();
  const auto begin = Clock::now();
  const auto enough = [&] {
    const auto count = static_cast<int64_t>(steps.size());
    const double elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
    return count >= kFewestSteps && (elapsed >= seconds || count >= kMostSteps);
  };
  while (!enough()) steps.push_back(time_step());
  const Ceilings after = ceilings();

  const auto middle = steps.begin() + static_cast<int64_t>(steps.size() / 2);
  std::nth_element(steps.begin(), middle, steps.end(),
                   [](const TimedStep& a, const TimedStep& b) { return a.seconds < b.seconds; });
  row.steps = static_cast<int64_t>(steps.size());
  row.seconds = middle->seconds;
  row.cost = middle->cost;
  row.distinct_experts = middle->distinct_experts;
  row.ceilings = {.read_bandwidth = mean(before.read_bandwidth, after.read_bandwidth),
                  .flops = mean(before.flops, after.flops)};
}

}  // namespace

Result<ModelConfig> v2_lite_config(int64_t layers, BenchOptions::WeightKind weights) {
  boost::json::object config = {
      {"model_type", "deepseek_v2"},
      {"torch_dtype", "bfloat16"},
      {"vocab_size", 102400},
      {"hidden_size", 2048},
      {"intermediate_size", 10944},
      {"moe_intermediate_size", 1408},
      {"num_hidden_layers", layers},
      {"first_k_dense_replace", 1},
      {"moe_layer_freq", 1},
      {"num_attention_heads", 16},
      {"q_lora_rank", nullptr},
      {"kv_lora_rank", 512},
      {"qk_nope_head_dim", 128},
      {"qk_rope_head_dim", 64},
      {"v_head_dim", 128},
      {"n_shared_experts", 2},
      {"n_routed_experts", 64},
      {"num_experts_per_tok", 6},
      {"n_group", 1},
      {"topk_group", 1},
      {"topk_method", "greedy"},
      {"scoring_func", "softmax"},
      {"norm_topk_prob", false},
      {"routed_scaling_factor", 1.0},
      {"hidden_act", "silu"},
      {"rms_norm_eps", 1e-6},
      {"rope_theta", 10000},
      {"rope_scaling",
       {{"type", "yarn"},
        {"factor", 40},
        {"original_max_position_embeddings", 4096},
        {"beta_fast", 32},
        {"beta_slow", 1},
        {"mscale", 0.707},
        {"mscale_all_dim", 0.707}}},
      {"max_position_embeddings", 163840},
      {"bos_token_id", 100000},
      {"eos_token_id", 100001},
      {"tie_word_embeddings", false},
  };
  if (weights == BenchOptions::WeightKind::kFP8) {
    config["quantization_config"] = {
        {"quant_method", "fp8"}, {"fmt", "e4m3"}, {"activation_scheme", "dynamic"}, {"weight_block_size", {128, 128}}};
  }
  return parse_model_config(config, nullptr);
}

int64_t layers_that_fit(BenchOptions::WeightKind weights) {
  // 64 + 2 experts of three 2048 x 1408 matrices, and attention; embedding and head are small beside them.
  constexpr double kLayerElements = 66.0 * 3 * 2048 * 1408 + 16e6;
  const double layer_bytes = kLayerElements * (weights == BenchOptions::WeightKind::kFP8 ? 1 : 2);
  const double budget = 0.45 * static_cast<double>(available_memory_bytes());
  return std::clamp(static_cast<int64_t>(budget / layer_bytes), kLeastLayers, kMostLayers);
}

void bench_model(ModelRunner& runner, const BenchOptions& options, const std::function<Ceilings()>& ceilings,
                 const std::function<void(const BenchRow&)>& report) {
  const int64_t longest = runner.model().config().max_position_embeddings;
  for (const int64_t tokens : options.prefill_tokens) {
    BenchRow row{.phase = BenchRow::Phase::kPrefill, .batch = 1, .context_tokens = 0, .tokens = tokens};
    if (tokens > longest) {
      row.skipped = fmt::format("longer than the model's {} positions", longest);
    } else {
      measure(row, options.seconds_per_row, ceilings, [&] { return runner.prefill(tokens); });
    }
    report(row);
  }
  for (const int64_t context : options.decode_context_tokens) {
    for (const int64_t batch : options.decode_batch) {
      BenchRow row{.phase = BenchRow::Phase::kDecode, .batch = batch, .context_tokens = context, .tokens = batch};
      const size_t kv_bytes = runner.kv_bytes(batch, context);
      if (context >= longest) {
        row.skipped = fmt::format("longer than the model's {} positions", longest);
      } else if (static_cast<double>(kv_bytes) > 0.9 * static_cast<double>(available_memory_bytes())) {
        row.skipped = fmt::format("its KV cache needs {}, {} are free", format_bytes(kv_bytes),
                                  format_bytes(available_memory_bytes()));
      } else {
        runner.reserve_kv(batch, context);
        measure(row, options.seconds_per_row, ceilings, [&] { return runner.decode(batch, context); });
      }
      report(row);
    }
  }
}

}  // namespace plait
