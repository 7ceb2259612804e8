// From segments to a model: which state the stream has between layers is chosen for the model as a whole.
#include <map>

#include "base/assert.h"
#include "layout/planner.h"
#include "layout/row_order.h"

namespace plait {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
// Where it costs the same, a sum is left to the next layer, whose norm can be fused with it.
constexpr double kPreferOwing_s = 1e-9;

void add_once(std::vector<StreamState>& states, const StreamState& state) {
  if (std::find(states.begin(), states.end(), state) == states.end()) states.push_back(state);
}

struct Position {
  SegmentKind kind;
  int64_t layer;
  int pipeline_stage;
};

std::vector<Position> positions_of(const ModelFacts& facts, int stages) {
  std::vector<Position> positions = {{SegmentKind::kEmbedding, -1, 0}};
  int stage = 0;
  for (int64_t layer = 0; layer < facts.layers; ++layer) {
    if (stage_of_layer(layer, facts.layers, stages) != stage) {
      positions.push_back({SegmentKind::kStageBoundary, -1, stage});
      ++stage;
    }
    positions.push_back(
        {facts.layer_has_experts(layer) ? SegmentKind::kExpertLayer : SegmentKind::kDenseLayer, layer, stage});
  }
  positions.push_back({SegmentKind::kHead, -1, stage});
  return positions;
}

std::string where(const Position& position) {
  if (position.layer < 0) return name_of(position.kind);
  return fmt::format("layer {} ({})", position.layer, name_of(position.kind));
}

// Dynamic programming over the positions; the states between them are those that a stage leaves or wants.
class ModelPlanner {
 public:
  ModelPlanner(const Topology& topology, const ModelFacts& facts, const StepForm& form, const CostModel& costs)
      : config_(topology.config()), facts_(facts), form_(form), planner_(topology, form, costs) {
    for (int kind = 0; kind < kSegmentKinds; ++kind)
      stages_[kind] = declare_stages(static_cast<SegmentKind>(kind), facts, config_, planner_.axes(), form);
    make_states();
  }

  Result<Plan> run() {
    const std::vector<Position> positions = positions_of(facts_, config_.pp_size);
    // Choice: [position][state after it] -> state before it.
    std::vector<std::vector<int>> choices;
    std::vector<double> cost(states_.size(), kNever);
    cost[kStart] = 0;
    for (const Position& position : positions) {
      std::vector<double> next(states_.size(), kNever);
      std::vector<int>& choice = choices.emplace_back(states_.size(), -1);
      for (size_t from = 0; from < states_.size(); ++from) {
        if (cost[from] == kNever) continue;
        PLAIT_ASSIGN_OR_RETURN(const auto* segments, segments_from(position, static_cast<int>(from)));
        for (size_t to = 0; to < states_.size(); ++to) {
          const auto& segment = (*segments)[to];
          if (!segment) continue;
          const double preference = states_[to].delta.owed.empty() ? 0 : kPreferOwing_s;
          const double total = cost[from] + segment->seconds - preference;
          if (total >= next[to]) continue;
          next[to] = total;
          choice[to] = static_cast<int>(from);
        }
      }
      cost = std::move(next);
    }
    return collect(positions, choices, cost[kEnd]);
  }

 private:
  static constexpr int kStart = 0, kEnd = 1;
  using Segments = std::vector<std::optional<Segment>>;

  // Start (nothing yet) and end (logits) first. The residual waits in attention's layout or as spread as possible; the
  // delta is there as some stage leaves it, or complete beside the residual.
  void make_states() {
    const TokenAxes& axes = planner_.axes();
    const Layout attention = *stages_[0].front().needs;
    const Layout spread{axes.all(), attention.order};
    const Layout head = *stages_[static_cast<int>(SegmentKind::kHead)].back().needs;
    // The two may be equal as values (on one rank): they are told apart by their places.
    states_ = {{{attention, {}}, std::nullopt}, {{head, {}}, std::nullopt}};
    std::vector<StreamState> between;
    add_once(between, {{attention, axes.attn_tp()}, std::nullopt});
    for (const Layout& rows : {attention, spread}) add_once(between, {{rows, {}}, std::nullopt});
    for (const Layout& residual : {attention, spread}) {
      add_once(between, {{residual, {}}, residual});
      for (const SegmentKind kind : {SegmentKind::kDenseLayer, SegmentKind::kExpertLayer}) {
        const StageDeclaration& last = stages_[static_cast<int>(kind)].back();
        add_once(between, {{*last.needs, last.owes}, residual});
      }
    }
    states_.insert(states_.end(), between.begin(), between.end());
  }

  // From a state to every state. Planned once for all layers of a kind.
  Result<const Segments*> segments_from(const Position& position, int from) {
    const auto [entry, is_new] = cache_.try_emplace({position.kind, from});
    if (!is_new) return &entry->second;
    const bool first = position.kind == SegmentKind::kEmbedding, last = position.kind == SegmentKind::kHead;
    std::vector<StreamState> outs = states_;
    if (last)
      outs = {states_[kEnd]};
    else
      outs.erase(outs.begin(), outs.begin() + 2);
    PLAIT_ASSERT(first == (from == kStart), "the embedding comes first and only there");
    PLAIT_ASSIGN_OR_RETURN(
        Segments found,
        planner_.segments(where(position), position.kind, stages_[static_cast<int>(position.kind)], states_[from], outs,
                          facts_.hidden * facts_.activation_bytes, facts_.activation_bytes));
    Segments& all = entry->second;
    all.resize(states_.size());
    const size_t offset = last ? kEnd : 2;
    for (size_t i = 0; i < found.size(); ++i) all[offset + i] = std::move(found[i]);
    return &all;
  }

  Result<Plan> collect(const std::vector<Position>& positions, const std::vector<std::vector<int>>& choices,
                       double seconds) {
    PLAIT_ASSERT(seconds < kNever, "segments() refuses what it cannot reach");
    Plan plan{.config = config_, .facts = facts_, .form = form_, .axes = planner_.axes(), .seconds = seconds};
    std::map<const Segment*, int> numbers;
    std::vector<std::pair<int, int>> path(positions.size());  // states before and after
    for (size_t i = positions.size(), to = kEnd; i-- > 0;) {
      path[i] = {choices[i][to], static_cast<int>(to)};
      to = static_cast<size_t>(choices[i][to]);
    }
    for (size_t i = 0; i < positions.size(); ++i) {
      const Segment& segment = *cache_.at({positions[i].kind, path[i].first})[path[i].second];
      const auto [entry, is_new] = numbers.try_emplace(&segment, static_cast<int>(plan.segments.size()));
      if (is_new) plan.segments.push_back(segment);
      plan.order.push_back({entry->second, positions[i].layer, positions[i].pipeline_stage});
    }
    finish(plan);
    return plan;
  }

  // What can be said only when all segments are known.
  void finish(Plan& plan) const {
    const auto note = [&](AxisSet sharded) { plan.divided = plan.divided | sharded; };
    for (const Segment& segment : plan.segments)
      for (const PlanStep& step : segment.steps) {
        if (const auto* collective = std::get_if<Collective>(&step)) {
          note(collective->before.layout.sharded | collective->after.layout.sharded);
        } else if (const auto* stage = std::get_if<StageStep>(&step)) {
          note(stage->in.layout.sharded | stage->out.layout.sharded);
          if (stage->residual) note(stage->residual->sharded);
        }
      }
    for (Segment& segment : plan.segments) {
      for (PlanStep& step : segment.steps) {
        auto* collective = std::get_if<Collective>(&step);
        if (!collective) continue;
        const bool moves_pieces =
            collective->kind == CollectiveKind::kAllGather || collective->kind == CollectiveKind::kReduceScatter;
        collective->reorder =
            moves_pieces &&
            needs_reorder(plan.axes, plan.divided, collective->before.layout.sharded | collective->after.layout.sharded,
                          collective->axes);
      }
      if (config_.enable_allreduce_fusion) fuse_all_reduces(segment.steps);
    }
  }

  const ParallelConfig& config_;
  const ModelFacts& facts_;
  const StepForm& form_;
  Planner planner_;
  std::array<std::vector<StageDeclaration>, kSegmentKinds> stages_;
  std::vector<StreamState> states_;
  std::map<std::pair<SegmentKind, int>, Segments> cache_;
};

}  // namespace

Result<Plan> make_plan(const Topology& topology, const ModelFacts& facts, const StepForm& form,
                       const PlannerOptions& options) {
  return ModelPlanner(topology, facts, form, options.costs).run();
}

}  // namespace plait
