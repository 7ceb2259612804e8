// What a rank would launch in a given step, written down a second time: from the step's own rows and a drawn routing,
// without the ranges that engine/rank_calls.h has. For tests of what can be reached.
#pragma once

#include <random>
#include <variant>
#include <vector>

#include "engine/rank_calls.h"
#include "model/shard_shapes.h"
#include "model/step.h"

namespace plait::testing {

struct Launch {
  RankMatrix matrix = RankMatrix::kHead;
  std::variant<cuda::GemmShape, cuda::QuantizeShape> operation;
  int64_t rows = 0;  // as choose_gemm counts them
};

class LaunchingRank {
 public:
  // What it refers to outlives it.
  LaunchingRank(const ModelConfig& config, const Topology& topology, std::span<const Plan> plans,
                const CallLimits& limits, int rank);

  // A step of each data-parallel rank within the limits, made as the scheduler makes them; loads are drawn so that
  // idle ranks, single rows and full steps are all likely.
  std::vector<Step> random_steps(std::mt19937& random) const;
  // Of these steps, each distinct stage once.
  std::vector<Launch> launches(const std::vector<Step>& of_dp_ranks, std::mt19937& random) const;

 private:
  struct Products;
  Step random_step(int dp, bool decode, std::mt19937& random) const;

  const ModelConfig& config_;
  const ModelFacts facts_;
  const Topology& topology_;
  const std::span<const Plan> plans_;
  const CallLimits limits_;
  const RankCoordinates at_;
  const ShardShapes shapes_;
  const bool has_exchange_;
  int64_t low_latency_tokens_ = 0;
};

}  // namespace plait::testing
