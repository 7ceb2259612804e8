// What tests of parallel ranks share: every valid configuration up to a world size, in a fixed order, and a model.
#pragma once

#include <vector>

#include "topology/model_facts.h"
#include "topology/parallel_config.h"

namespace plait::test {

// All that differ in sizes, a2a form, context strategy or head; options that change neither placement nor sums
// (replicas, hosts, deepep mode, fusion) keep their defaults. Forced configurations appear once, as forced.
std::vector<ParallelConfig> valid_configurations(int max_world);

// DeepSeek-V3 as published.
ModelFacts v3();

}  // namespace plait::test
