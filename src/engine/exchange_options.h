// How the exchange of tokens between experts is set up, from what a step can be at most. Pure functions.
#pragma once

#include <span>

#include "comm/expert_exchange.h"
#include "kernels/context.h"
#include "topology/model_facts.h"
#include "topology/parallel_config.h"

namespace plait {

// Of one data-parallel rank's part of any step.
struct StepLimits {
  comm::LargestStep decode;    // requests that can run, and tokens of each
  int64_t prefill_tokens = 0;  // of a step with a prefill
};

// Limits that hold for all data-parallel ranks together are shared out; what does not divide makes some larger, and the
// first one's are the largest.
StepLimits step_limits(const ParallelConfig& parallel, int64_t max_running_requests, int64_t chunked_prefill_tokens,
                       int dp = 0);

bool uses_exchange(const ModelFacts& facts, const ParallelConfig& parallel);
// The static buffer of the low-latency form holds every decode step; where that form is forced, every step. kInvalid:
// it does not.
Result<comm::ExpertExchangeOptions> exchange_options(const ModelFacts& facts, const ParallelConfig& parallel,
                                                     const StepLimits& limits, kernels::Activation activation);

// The low-latency form for decoding, where every rank's rows fit it: a function of agreed counts alone.
// `low_latency_tokens`: ExpertExchangeOptions::capacity_tokens.
comm::ExchangeForm exchange_form(DeepepMode mode, int64_t low_latency_tokens, std::span<const int64_t> padded_rows,
                                 bool any_prefill);

}  // namespace plait
