// Which products and quantisations one rank ever makes, and with how many rows: what its kernels are made for, and what
// it looks them up by.
//
// Values and pure functions. The list is read off the plans of the rank's steps (agreed_rows.h), so a call stands where
// the plan has its stage, with the rows that the plan has there. Shapes are those that weights are cut to
// (model/shard_shapes.h); widths that a cut leaves odd are rounded up to what kernels take, and hold zeros there.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "base/error.h"
#include "checkpoint/model_config.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/quantize.h"
#include "layout/plan.h"
#include "topology/disaggregation.h"
#include "topology/topology.h"

namespace plait {

// Of all data-parallel ranks together.
struct CallLimits {
  int64_t max_running_requests = 256;
  int64_t chunked_prefill_tokens = 2048;
  int64_t prompt_logprob_rows = 128;  // SchedulerOptions has the same
  DisaggregationMode mode = DisaggregationMode::kNull;
};

// A stored matrix, as model/shard_shapes.h has them.
enum class RankMatrix : uint8_t {
  kQueryLatent,
  kQueryB,
  kKvB,  // for attention in expanded form: keys and values of cached rows
  kOutput,
  kDenseGateUp,
  kDenseDown,
  kRouter,
  kSharedGateUp,
  kSharedDown,
  kExpertGateUp,
  kExpertDown,
  kHead,
};
const char* name_of(RankMatrix matrix);  // "attention.q_b"

// first, first + multiple, ... last: the row counts that can come in steps of one kind.
struct ReachableRows {
  bool decode = false;  // steps in which nobody reads a prompt; else the others
  int64_t first = 0, last = 0;
  int64_t multiple = 1;

  bool operator==(const ReachableRows&) const = default;
};

// Of a product: its rows as choose_gemm counts them. Of a quantisation: it makes the rows that the matrix multiplies.
struct RankCall {
  RankMatrix matrix = RankMatrix::kHead;
  std::variant<cuda::GemmShape, cuda::QuantizeShape> operation;
  std::vector<int64_t> layers;  // ascending; none: after the last layer
  std::vector<ReachableRows> rows;

  bool operator==(const RankCall&) const = default;
};
// "layers 3-60 experts.down", "layers 3-60 experts.down (input)"
std::string describe(const RankCall& call);

// In the order of a step. `plans`: make_step_plans of `topology`. Errors: those of exchange_options; kUnsupported, with
// the matrix, if a width of the model is none that kernels take.
Result<std::vector<RankCall>> rank_calls(const ModelConfig& config, const Topology& topology,
                                         std::span<const Plan> plans, const CallLimits& limits, int rank);

// -- How calls that are not made for rows of tokens count theirs

// Rows of the contiguous form begin at multiples of this for each expert.
inline constexpr int64_t kExpertRowAlignment = 128;
// Rows of an expert on average, at least 1, if `tokens` choose among all of them: by this the host chooses a masked
// kernel, for it does not know how they are routed.
int64_t mean_expert_rows(const ModelFacts& facts, int64_t tokens);
// Attention in expanded form takes a sequence's rows of the cache in stretches of at most so many.
int64_t expanded_stretch_rows(const ParallelConfig& parallel, const CallLimits& limits, int dp);

}  // namespace plait
