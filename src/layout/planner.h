// Finds the cheapest collectives between what stages leave and what the next ones need.
//
// A shortest path over the states of the stream (how far the layer is, how the rows are sharded, which sums are owed,
// where the residual is), whose edges are collectives and stages; no table of cases. Runs at model build: what no path
// reaches is refused there, naming layer, stage and both layouts. Pure functions.
#pragma once

#include <string_view>
#include <vector>

#include "base/error.h"
#include "layout/cost.h"
#include "layout/plan.h"
#include "topology/topology.h"

namespace plait {

struct PlannerOptions {
  CostModel costs;
};

// The whole model. `topology`'s configuration has passed judge() with `facts`.
Result<Plan> make_plan(const Topology& topology, const ModelFacts& facts, const StepForm& form,
                       const PlannerOptions& options = {});

// The search itself, on declarations of the caller's.
class Planner {
 public:
  Planner(const Topology& topology, const StepForm& form, const CostModel& costs);

  const TokenAxes& axes() const { return axes_; }

  // Collectives from `have` to `need`. kUnsupported, beginning with `where`: `need` wants another order of rows, or a
  // sum to be owed that is complete.
  Result<std::vector<Collective>> edge(std::string_view where, const Placement& have, const Placement& need,
                                       int64_t row_bytes) const;

  // `stages` in order, from `in` to each of `outs`: the cheapest segment for each, nullopt where there is none.
  // kUnsupported, beginning with `where`, if some stage cannot be reached at all. `row_bytes`: of the delta at `in`.
  Result<std::vector<std::optional<Segment>>> segments(std::string_view where, SegmentKind kind,
                                                       const std::vector<StageDeclaration>& stages,
                                                       const StreamState& in, const std::vector<StreamState>& outs,
                                                       int64_t row_bytes, int64_t element_bytes) const;

 private:
  friend class StreamSearch;

  TokenAxes axes_;
  StepForm form_;
  CostModel costs_;
  std::vector<bool> spans_hosts_;  // [axis set]: some group along it has ranks on several hosts
};

}  // namespace plait
