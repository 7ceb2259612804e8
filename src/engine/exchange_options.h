// How the exchange of tokens between experts is set up, from what a step can be at most. Pure functions.
#pragma once

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

// Limits that hold for all data-parallel ranks together are shared out; what does not divide makes some larger.
StepLimits step_limits(const ParallelConfig& parallel, int64_t max_running_requests, int64_t chunked_prefill_tokens);

bool uses_exchange(const ModelFacts& facts, const ParallelConfig& parallel);
// The static buffer of the low-latency form holds every decode step; where that form is forced, every step. kInvalid:
// it does not.
Result<comm::ExpertExchangeOptions> exchange_options(const ModelFacts& facts, const ParallelConfig& parallel,
                                                     const StepLimits& limits, kernels::Activation activation);

}  // namespace plait
