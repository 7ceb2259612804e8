// Bytes that a step moves between ranks: what its plan announces, to be compared with what communicators counted.
//
// Pure functions.
#pragma once

#include <map>
#include <string>
#include <utility>

#include "engine/rank_backend.h"
#include "layout/plan.h"

namespace plait {

// A collective: its operation ("all_gather") and what it moves ("delta", "KV latents").
using CollectiveName = std::pair<std::string, std::string>;
// Bytes that all ranks together receive from others.
using StepTraffic = std::map<CollectiveName, double>;

// In a ring, for equal row counts. What depends on routing is its expectation over experts that are chosen evenly.
StepTraffic planned_traffic(const Plan& plan, const AgreedStep& step);

}  // namespace plait
