#include "engine/engine_setup.h"

#include "checkpoint/checkpoint.h"
#include "engine/memory_plan.h"

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

}  // namespace

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
  PLAIT_ASSIGN_OR_RETURN(setup.model, make_model(setup.config, {options.implementation, setup.activation}));
  return setup;
}

Result<MemoryPlan> plan_engine_memory(const EngineOptions& options, const EngineSetup& setup, size_t available_bytes) {
  const int64_t rows = std::max(options.chunked_prefill_tokens, options.max_running_requests);
  MemoryNeeds needs;
  needs.available_bytes = available_bytes;
  needs.weight_bytes = setup.model->weight_bytes();
  needs.scratch_bytes = setup.model->scratch_bytes(rows, setup.context_tokens) +
                        static_cast<size_t>(options.max_running_requests * setup.config.vocab_size) * sizeof(float);
  needs.kv = setup.model->kv_spec();
  needs.page_tokens = options.page_tokens;
  needs.mem_fraction_static = options.mem_fraction_static;
  needs.max_total_tokens = options.max_total_tokens;
  needs.max_running_requests = options.max_running_requests;
  needs.context_tokens = setup.context_tokens;
  return plan_memory(needs);
}

}  // namespace plait
