// A plan: for every layer the stages and the collectives between them, as data.
//
// Made once per step form by the planner, immutable, the same on every rank; the engine walks it (plan_walk.h). It
// holds for both padding modes: a collective marked `uneven` takes its variable-size form in SUM_LEN steps.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "layout/stage.h"
#include "layout/step_rows.h"

namespace plait {

enum class Payload : uint8_t { kDelta, kResidual };

// A collective on the stream between stages.
struct Collective {
  CollectiveKind kind = CollectiveKind::kAllReduce;
  Payload payload = Payload::kDelta;
  AxisSet axes;  // the group: ranks that differ along these
  Placement before, after;
  int64_t row_bytes = 0;
  bool uneven = false;   // spans data-parallel ranks, whose row counts differ in SUM_LEN steps
  bool reorder = false;  // pieces by rank are not in storage order (needs_reorder)
};

struct StageStep {
  StageDeclaration stage;
  Placement in;                    // of the delta; nothing is owed, except before kSelectRows
  std::optional<Layout> residual;  // where the residual is; absent: there is none
  Placement out;
};

// An all-reduce, the residual addition and the norm as one operation. Made by fuse_all_reduces() from a planned
// all-reduce only, so it cannot exist where nothing is owed.
struct FusedAllReduceAddNorm {
  Collective all_reduce;
  StageStep add_norm;
};

using PlanStep = std::variant<Collective, StageStep, FusedAllReduceAddNorm>;

// The stream between segments: the delta that the next norm will add, and the residual, if there is one yet.
struct StreamState {
  Placement delta;
  std::optional<Layout> residual;

  bool operator==(const StreamState&) const = default;
};

struct Segment {
  SegmentKind kind = SegmentKind::kDenseLayer;
  StreamState in, out;
  std::vector<PlanStep> steps;
  double seconds = 0;  // by the cost model, without the work of stages that is the same in every plan
};

// One execution of a segment.
struct ScheduledSegment {
  int segment = 0;         // index in Plan::segments
  int64_t layer = -1;      // -1: no layer
  int pipeline_stage = 0;  // of a boundary: the sender
};

struct Plan {
  ParallelConfig config;
  ModelFacts facts;
  StepForm form;
  TokenAxes axes;
  std::vector<Segment> segments;  // distinct; alike layers share one
  std::vector<ScheduledSegment> order;
  AxisSet divided;  // every axis along which rows are ever sharded
  double seconds = 0;

  // What padded counts must be divisible by in a step of this form.
  RowAlignment alignment(int64_t tokens_per_request = 1) const;
  // Groups of ranks whose communicator some step needs, without repetition.
  std::vector<AxisSet> groups() const;
};

// Bytes that one rank sends for each token of a data-parallel rank, in a step with equal row counts. `rows`: where the
// rows are on which the stage works. For logits and all that follows kSelectRows: for each selected row.
double bytes_per_token(const Plan& plan, const Collective& collective);
double bytes_per_token(const Plan& plan, const StageTraffic& traffic, const Layout& rows);
// What a pipeline boundary sends.
double bytes_per_token(const Plan& plan, const StageStep& send);

// Replaces each all-reduce that a residual addition and norm follow.
void fuse_all_reduces(std::vector<PlanStep>& steps);

}  // namespace plait
