// Every valid parallel configuration up to a world size, in a fixed order.
#pragma once

#include <vector>

#include "topology/parallel_config.h"

namespace plait::test {

// All that differ in sizes, a2a form, context strategy or head; options that change neither placement nor sums
// (replicas, hosts, deepep mode, fusion) keep their defaults. Forced configurations appear once, as forced.
std::vector<ParallelConfig> valid_configurations(int max_world);

}  // namespace plait::test
