#include "engine/exchange_options.h"

#include <numeric>

namespace plait {

StepLimits step_limits(const ParallelConfig& parallel, int64_t max_running_requests, int64_t chunked_prefill_tokens,
                       int dp) {
  const auto share = [&](int64_t total) { return data_parallel_limit(total, dp, parallel.attn_dp_size()); };
  return {.decode = {.requests_per_rank = share(max_running_requests)},
          .prefill_tokens = share(chunked_prefill_tokens)};
}

bool uses_exchange(const ModelFacts& facts, const ParallelConfig& parallel) {
  return parallel.moe_a2a_backend != MoeA2a::kNone && facts.experts > 0;
}

Result<comm::ExpertExchangeOptions> exchange_options(const ModelFacts& facts, const ParallelConfig& parallel,
                                                     const StepLimits& limits, kernels::Activation activation) {
  // Inputs of products are rounded to bfloat16 anyway, unless they compute in float32.
  comm::ExpertExchangeOptions options{
      .hidden = facts.hidden,
      .experts = static_cast<int>(facts.experts),
      .top_k = static_cast<int>(facts.experts_per_token),
      .payload = activation == kernels::Activation::kFloat32 ? DType::kF32 : DType::kBF16,
  };
  if (parallel.deepep_mode == DeepepMode::kNormal) return options;
  const comm::LargestStep& decode = limits.decode;
  int64_t rows = decode.requests_per_rank * decode.tokens_per_request;
  if (parallel.deepep_mode == DeepepMode::kLowLatency) rows = std::max(rows, limits.prefill_tokens);
  // Padding is to a multiple of what divides 2 * tp (halves of context blocks), and of a request's tokens.
  const int64_t multiple = std::lcm<int64_t>(2 * parallel.tp_size, decode.tokens_per_request);
  options.capacity_tokens = (rows + multiple - 1) / multiple * multiple;
  PLAIT_RETURN_IF_ERROR(comm::check_capacity(options, decode));
  return options;
}

comm::ExchangeForm exchange_form(DeepepMode mode, int64_t low_latency_tokens, std::span<const int64_t> padded_rows,
                                 bool any_prefill) {
  switch (mode) {
    case DeepepMode::kNormal:
      return comm::ExchangeForm::kNormal;
    case DeepepMode::kLowLatency:
      return comm::ExchangeForm::kLowLatency;
    case DeepepMode::kAuto:
      break;
  }
  const bool fits = *std::max_element(padded_rows.begin(), padded_rows.end()) <= low_latency_tokens;
  return fits && !any_prefill ? comm::ExchangeForm::kLowLatency : comm::ExchangeForm::kNormal;
}

}  // namespace plait
