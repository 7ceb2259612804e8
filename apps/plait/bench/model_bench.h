// The rows of `plait bench`: prefill and decode of one model at several sizes.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench/bench.h"
#include "bench/machine_probe.h"
#include "bench/model_runner.h"

namespace plait {

struct BenchRow {
  enum class Phase { kPrefill, kDecode };
  Phase phase = Phase::kPrefill;
  int64_t batch = 1;
  int64_t context_tokens = 0;  // in the cache before the step
  int64_t tokens = 0;          // rows of the step
  int64_t steps = 0;           // that were timed
  double seconds = 0;          // of one step, median
  // Of the median step.
  StepCost cost;
  int64_t distinct_experts = 0;  // summed over layers
  Ceilings ceilings;             // of the machine, the mean of just before and just after
  std::string skipped;           // why there are no figures

  double tokens_per_second() const { return static_cast<double>(tokens) / seconds; }
  double bytes() const { return cost.total().weight_bytes + cost.total().kv_bytes; }
  double bandwidth() const { return bytes() / seconds; }
  double flop_rate() const { return cost.total().flops / seconds; }
  double share_of_memory() const { return bandwidth() / ceilings.read_bandwidth; }
  double share_of_peak() const { return flop_rate() / ceilings.flops; }
  // Of the speed at which each part of the step takes as long as its bytes or its arithmetic, whichever is longer.
  double share_of_limit() const { return cost.least_seconds(ceilings.read_bandwidth, ceilings.flops) / seconds; }
};

// DeepSeek-V2-Lite's widths with `layers` layers, one of them dense.
Result<ModelConfig> v2_lite_config(int64_t layers, BenchOptions::WeightKind weights);
// How many of those layers the memory that is free now holds, with room for KV: 3 to 8.
int64_t layers_that_fit(BenchOptions::WeightKind weights);

// Calls `ceilings` before and after each row, `report` with the row.
void bench_model(ModelRunner& runner, const BenchOptions& options, const std::function<Ceilings()>& ceilings,
                 const std::function<void(const BenchRow&)>& report);

}  // namespace plait
