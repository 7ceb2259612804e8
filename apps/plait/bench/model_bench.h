// The rows of `plait bench`: prefill and decode of one model at several sizes.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench/bench.h"
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
  double weight_bytes = 0;
  double kv_bytes = 0;
  double flops = 0;
  int64_t distinct_experts = 0;  // summed over layers
  std::string skipped;           // why there are no figures

  double tokens_per_second() const { return static_cast<double>(tokens) / seconds; }
  double bytes() const { return weight_bytes + kv_bytes; }
  double bandwidth() const { return bytes() / seconds; }
  double flop_rate() const { return flops / seconds; }
};

// DeepSeek-V2-Lite's widths with `layers` layers, one of them dense.
Result<ModelConfig> v2_lite_config(int64_t layers, BenchOptions::WeightKind weights);
// How many of those layers the memory that is free now holds, with room for KV: 3 to 8.
int64_t layers_that_fit(BenchOptions::WeightKind weights);

// Calls `report` after each row.
void bench_model(ModelRunner& runner, const BenchOptions& options, const std::function<void(const BenchRow&)>& report);

}  // namespace plait
