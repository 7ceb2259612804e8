// What dispatch, experts and combine compute together, on one rank: the specification of ExpertExchange.
//
// Plain function; any thread.
#pragma once

#include <functional>
#include <span>

#include "comm/expert_exchange.h"

namespace plait::comm {

// y = the expert's result for one row. row, y: [hidden]
using ExpertFunction = std::function<void(int expert, const float* row, float* y)>;

// tokens [count, hidden]; experts, weights [count, top_k]; out [count, hidden]. Rows and results are rounded to the
// payloads of `options`, as if they had travelled.
void reference_exchange(const ExpertExchangeOptions& options, ConstRows tokens, std::span<const int32_t> experts,
                        std::span<const float> weights, const ExpertFunction& expert, Rows out);

}  // namespace plait::comm
