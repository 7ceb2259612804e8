#include "engine/engine_setup.h"

#include <fstream>

#include <boost/json/serialize.hpp>
#include <fmt/ranges.h>

#include "base/log.h"
#include "base/sha256.h"
#include "base/version.h"
#include "checkpoint/checkpoint.h"
#include "engine/exchange_options.h"
#include "engine/memory_plan.h"
#include "layout/stage.h"
#include "model/model_facts.h"
#include "topology/rules.h"

namespace plait {
namespace {

using kernels::Activation;

Result<int64_t> longest_context(int64_t asked, const ModelConfig& config) {
  if (asked <= 0) return config.max_position_embeddings;
  if (asked > config.max_position_embeddings)
    return invalid(fmt::format("--context-length {} is more than the model's max_position_embeddings, {}", asked,
                               config.max_position_embeddings));
  return asked;
}

Status check_options(const EngineOptions& options) {
  if (!(options.mem_fraction_static > 0 && options.mem_fraction_static <= 1))
    return invalid(fmt::format("--mem-fraction-static {} is not in (0, 1]", options.mem_fraction_static));
  if (options.max_running_requests < 1)
    return invalid(fmt::format("--max-running-requests {} is not positive", options.max_running_requests));
  if (options.chunked_prefill_tokens < 1)
    return invalid(fmt::format("--chunked-prefill-size {} is not positive", options.chunked_prefill_tokens));
  if (options.max_total_tokens < 0)
    return invalid(fmt::format("--max-total-tokens {} is negative", options.max_total_tokens));
  if (options.threads < 0) return invalid(fmt::format("{} threads are too few", options.threads));
  return {};
}

// What the flags ask for, with what follows from it; refused is also what ranks cannot do yet.
Result<ParallelConfig> parallel_of(const EngineOptions& options, const ModelFacts& facts) {
  const ParallelVerdict verdict = judge(options.parallel, &facts);
  PLAIT_RETURN_IF_ERROR(verdict.status());
  for (const RuleFinding& finding : verdict.findings) log::info("{}", finding.explanation);
  const ParallelConfig& config = verdict.config;
  if (config.replicas() > 1)
    return unsupported(
        fmt::format("--dp-size {} without --enable-dp-attention means whole replicas, each an engine process of its "
                    "own; only plait serve runs them. Here leave --dp-size out, or add --enable-dp-attention",
                    config.dp_size));
  return config;
}

// Enough of a SHA-256 to tell two files apart.
std::string digest_of_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<uint8_t> bytes((std::istreambuf_iterator<char>(file)), {});
  const Digest digest = sha256(bytes);
  return fmt::format("{:02x}", fmt::join(std::span(digest).first(8), ""));
}

}  // namespace

ModelShard shard_of(const Topology& topology, const ModelFacts& facts, int rank) {
  const ParallelConfig& config = topology.config();
  const RankCoordinates at = topology.coordinates(rank);
  const int stages = config.pp_size;
  ModelShard shard;
  int64_t begin = 0;
  while (begin < facts.layers && stage_of_layer(begin, facts.layers, stages) < at.pp) ++begin;
  int64_t end = begin;
  while (end < facts.layers && stage_of_layer(end, facts.layers, stages) == at.pp) ++end;
  shard.layers = {begin, at.pp + 1 == stages ? std::numeric_limits<int64_t>::max() : end};
  const ShardPart attn_tp{at.attn_tp, config.attn_tp_size()};
  shard.heads = attn_tp;
  shard.embedding = attn_tp;
  shard.dense_width = {at.dense_tp, config.dense_tp_size()};
  shard.experts = {at.moe_ep, config.ep_size};
  shard.expert_width = {at.moe_tp, config.moe_tp_size()};
  if (shares_shared_expert(config, facts))
    shard.shared_width = {at.moe_ep * config.moe_tp_size() + at.moe_tp, config.moe_block_size()};
  shard.head = config.enable_dp_lm_head ? attn_tp : ShardPart{at.tp, config.tp_size};
  return shard;
}

Result<Activation> activation_of(const std::string& dtype, const ModelConfig& config) {
  if (dtype == "float32" || dtype == "float") return Activation::kFloat32;
  if (dtype == "bfloat16") return Activation::kBFloat16;
  // float16 checkpoints run in bfloat16 too: products of float16 would overflow, and the weights keep their bits
  // anyway.
  if (dtype == "auto") return config.weight_dtype == DType::kF32 ? Activation::kFloat32 : Activation::kBFloat16;
  return invalid(fmt::format("--dtype {}: choose auto, bfloat16 or float32", dtype));
}

Result<EngineSetup> prepare_engine(const EngineOptions& options) {
  PLAIT_RETURN_IF_ERROR(check_options(options));
  EngineSetup setup;
  PLAIT_ASSIGN_OR_RETURN(setup.folder, resolve_model_path(options.model_path));
  PLAIT_ASSIGN_OR_RETURN(setup.config, read_model_config(setup.folder, options.config_overrides));
  PLAIT_ASSIGN_OR_RETURN(setup.activation, activation_of(options.dtype, setup.config));
  PLAIT_ASSIGN_OR_RETURN(setup.context_tokens, longest_context(options.context_tokens, setup.config));
  const ModelFacts facts = model_facts(setup.config);
  PLAIT_ASSIGN_OR_RETURN(setup.parallel, parallel_of(options, facts));
  if (options.keep_routed_experts && facts.experts == 0)
    return unsupported("--enable-return-routed-experts: this model has no routed experts");
  const Topology topology(setup.parallel);
  const int here = topology.world() / setup.parallel.nnodes;
  for (int rank = here * setup.parallel.node_rank; rank < here * (setup.parallel.node_rank + 1); ++rank) {
    const ModelOptions own{options.implementation, setup.activation, shard_of(topology, facts, rank)};
    PLAIT_ASSIGN_OR_RETURN(setup.models.emplace_back(), make_model(setup.config, own));
  }
  return setup;
}

SharedSettings shared_settings(const EngineOptions& options, const EngineSetup& setup) {
  ParallelConfig parallel = setup.parallel;
  parallel.node_rank = 0;
  parallel.dist_init_addr.clear();
  return {{"version", std::string(version())},
          {"config.json", digest_of_file(setup.folder / "config.json")},
          {"--json-model-override-args", boost::json::serialize(options.config_overrides)},
          {"parallel flags", to_flags(parallel)},
          {"--load-format", options.dummy_weights ? "dummy" : "auto"},
          {"--dtype", options.dtype},
          {"--kernels", options.implementation == kernels::Implementation::kFast ? "fast" : "reference"},
          {"--disaggregation-mode", name_of(options.disaggregation)},
          {"--enable-return-routed-experts", options.keep_routed_experts ? "on" : "off"},
          {"--page-size", fmt::to_string(options.page_tokens)},
          {"--max-running-requests", fmt::to_string(options.max_running_requests)},
          {"--chunked-prefill-size", fmt::to_string(options.chunked_prefill_tokens)},
          {"--context-length", fmt::to_string(setup.context_tokens)}};
}

Result<std::vector<WeightRequest>> expected_tensors(const EngineSetup& setup) {
  std::vector<std::vector<WeightRequest>> lists;
  for (const auto& model : setup.models) lists.push_back(model->weight_requests());
  if (setup.parallel.nnodes > 1) {
    PLAIT_ASSIGN_OR_RETURN(const auto whole, make_model(setup.config, {}));
    lists.push_back(whole->weight_requests());
    for (WeightRequest& request : lists.back()) request.write = nullptr;
  }
  return merge_requests(std::move(lists));
}

Result<MemoryPlan> plan_engine_memory(const EngineOptions& options, const EngineSetup& setup, size_t available_bytes) {
  const int64_t rows = std::max(options.chunked_prefill_tokens, options.max_running_requests);
  const int64_t dp = setup.parallel.attn_dp_size();
  MemoryNeeds needs;
  needs.available_bytes = options.memory_bytes > 0 ? std::min(available_bytes, options.memory_bytes) : available_bytes;
  needs.scratch_bytes =
      static_cast<size_t>(options.max_running_requests * setup.config.vocab_size) * sizeof(float) * setup.models.size();
  for (const auto& model : setup.models) {
    needs.weight_bytes += model->weight_bytes();
    needs.scratch_bytes += model->scratch_bytes(rows, setup.context_tokens);
  }
  const ModelFacts facts = model_facts(setup.config);
  const StepLimits limits = step_limits(setup.parallel, options.max_running_requests, options.chunked_prefill_tokens);
  if (uses_exchange(facts, setup.parallel)) {
    PLAIT_ASSIGN_OR_RETURN(const auto exchange, exchange_options(facts, setup.parallel, limits, setup.activation));
    needs.scratch_bytes += comm::low_latency_bytes(exchange, setup.parallel.ep_size) * setup.models.size();
  }
  // A page of a data-parallel rank is memory on each rank that has layers of it.
  needs.kv = setup.models.front()->kv_spec();
  for (size_t i = 0; i < needs.kv.components.size(); ++i) {
    needs.kv.components[i].layers = 0;
    for (const auto& model : setup.models) needs.kv.components[i].layers += model->kv_spec().components[i].layers;
    if (!setup.parallel.prefill_cp_kv_sharded) continue;
    // A part of the pages for each context rank, and a layer's whole pages at once (engine/context_pages.h).
    const int64_t members = setup.parallel.attn_cp_size;
    needs.kv.components[i].layers = (needs.kv.components[i].layers + members - 1) / members + std::ssize(setup.models);
  }
  if (options.keep_routed_experts)
    needs.routed_expert_bytes_per_token = dp * RoutedExpertShape::of(setup.config).row_bytes();
  needs.page_tokens = options.page_tokens;
  needs.mem_fraction_static = options.mem_fraction_static;
  needs.max_total_tokens = options.max_total_tokens;
  needs.max_running_requests = limits.decode.requests_per_rank;
  needs.context_tokens = setup.context_tokens;
  return plan_memory(needs);
}

}  // namespace plait
