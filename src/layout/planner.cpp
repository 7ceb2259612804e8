#include "layout/planner.h"

#include <queue>

#include "base/assert.h"
#include "layout/row_order.h"

namespace plait {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// Calls `visit` with every non-empty subset.
template <typename Visit>
void for_each_subset(AxisSet set, const Visit& visit) {
  for (uint32_t bits = set.bits(); bits != 0; bits = (bits - 1) & set.bits()) visit(AxisSet::of_bits(bits));
}

}  // namespace

Planner::Planner(const Topology& topology, const StepForm& form, const CostModel& costs)
    : axes_(topology.config()), form_(form), costs_(costs), spans_hosts_(size_t{1} << axes_.count()) {
  const int stage_ranks = axes_.ranks();
  for (uint32_t bits = 0; bits < spans_hosts_.size(); ++bits)
    for (int rank = 0; rank < topology.world() && !spans_hosts_[bits]; ++rank) {
      std::vector<int> group = axes_.group(AxisSet::of_bits(bits), rank % stage_ranks);
      for (int& member : group) member += rank / stage_ranks * stage_ranks;
      spans_hosts_[bits] = !topology.on_one_host(group);
    }
}

// Dijkstra's algorithm from one state of the stream through a segment's stages.
class StreamSearch {
 public:
  StreamSearch(const Planner& planner, const std::vector<StageDeclaration>& stages, const StreamState& in,
               int64_t row_bytes, int64_t element_bytes)
      : planner_(planner), axes_(planner.axes_), stages_(stages), in_(in), sets_(1u << axes_.count()) {
    const auto tokens = static_cast<double>(planner.form_.tokens);
    const auto logit_rows = static_cast<double>(planner.form_.logit_rows);
    const double dp = axes_.width(axes_.attn_dp());
    levels_.push_back({static_cast<double>(row_bytes), dp * tokens, in.delta.layout.order});
    for (const StageDeclaration& stage : stages) {
      Level level = levels_.back();
      level.row_bytes = static_cast<double>(stage.width * element_bytes);
      if (stage.kind == StageKind::kSelectRows) level = {level.row_bytes, dp * logit_rows, RowOrderKind::kBatch};
      levels_.push_back(level);
    }
    nodes_.resize(levels_.size() * sets_ * sets_ * (sets_ + 1));
  }

  // Until all of `outs` are reached, or nothing is left.
  void run(const std::vector<StreamState>& outs) {
    size_t missing = outs.size();
    const int start = index({0, in_.delta.layout.sharded, in_.delta.owed, residual_of(in_)});
    nodes_[start].seconds = 0;
    queue_.push({0, start});
    std::vector<int> targets;
    for (const StreamState& out : outs) targets.push_back(target(out));
    while (!queue_.empty() && missing > 0) {
      const auto [seconds, at] = queue_.top();
      queue_.pop();
      if (nodes_[at].done) continue;
      nodes_[at].done = true;
      missing -= std::count(targets.begin(), targets.end(), at);
      expand(at);
    }
  }

  std::optional<Segment> segment(SegmentKind kind, const StreamState& out) const {
    const int end = target(out);
    if (!nodes_[end].done) return std::nullopt;
    Segment segment{kind, in_, out, {}, nodes_[end].seconds};
    std::vector<int> path;
    for (int at = end; at >= 0; at = nodes_[at].from) path.push_back(at);
    for (size_t i = path.size() - 1; i > 0; --i)
      emit(state(path[i]), nodes_[path[i - 1]], state(path[i - 1]), segment.steps);
    return segment;
  }

  // How many stages some path has passed.
  int stages_passed() const {
    int passed = 0;
    for (size_t i = 0; i < nodes_.size(); ++i)
      if (nodes_[i].seconds < kNever) passed = std::max(passed, state(static_cast<int>(i)).level);
    return passed;
  }

 private:
  // What the stream's rows are after so many stages.
  struct Level {
    double row_bytes;
    double rows;  // of all data-parallel ranks
    RowOrderKind order;
  };
  struct State {
    int level;
    AxisSet sharded, owed;
    std::optional<AxisSet> residual;
  };
  struct Node {
    double seconds = kNever;
    int from = -1;
    bool done = false;
    bool by_stage = false;
    CollectiveKind kind = CollectiveKind::kSlice;
    AxisSet along;
  };

  static std::optional<AxisSet> residual_of(const StreamState& stream) {
    return stream.residual ? std::optional(stream.residual->sharded) : std::nullopt;
  }

  int target(const StreamState& out) const {
    return index({static_cast<int>(stages_.size()), out.delta.layout.sharded, out.delta.owed, residual_of(out)});
  }

  int index(const State& state) const {
    const uint32_t residual = state.residual ? state.residual->bits() : sets_;
    return static_cast<int>(((state.level * sets_ + state.sharded.bits()) * sets_ + state.owed.bits()) * (sets_ + 1) +
                            residual);
  }

  State state(int index) const {
    const auto number = static_cast<uint32_t>(index);
    const uint32_t residual = number % (sets_ + 1), rest = number / (sets_ + 1);
    return {static_cast<int>(rest / sets_ / sets_), AxisSet::of_bits(rest / sets_ % sets_),
            AxisSet::of_bits(rest % sets_),
            residual == sets_ ? std::nullopt : std::optional(AxisSet::of_bits(residual))};
  }

  double rows_held(const State& at) const { return levels_[at.level].rows / axes_.width(at.sharded); }

  // Of rows of `row_bytes` that are sharded like this on the side on which they are closest together.
  double seconds_of(CollectiveKind kind, AxisSet along, AxisSet together, AxisSet apart, double rows,
                    double row_bytes) const {
    const double full = rows / axes_.width(together) * row_bytes;
    double seconds =
        collective_seconds(planner_.costs_, kind, axes_.width(along), full, planner_.spans_hosts_[along.bits()]);
    const bool moves_pieces = kind == CollectiveKind::kAllGather || kind == CollectiveKind::kReduceScatter;
    if (moves_pieces && needs_reorder(axes_, axes_.all(), apart, along))
      seconds += 2 * full / planner_.costs_.local_bytes_per_second;
    return seconds;
  }

  void reach(int from, const State& to, double seconds, const Node& how) {
    Node& node = nodes_[index(to)];
    const double total = nodes_[from].seconds + seconds;
    if (total >= node.seconds) return;
    node = how;
    node.seconds = total;
    node.from = from;
    queue_.push({total, index(to)});
  }

  void expand(int at) {
    const State here = state(at);
    const Level& level = levels_[here.level];
    const auto move = [&](CollectiveKind kind, AxisSet along, AxisSet sharded, AxisSet owed) {
      const AxisSet together = here.sharded & sharded, apart = here.sharded | sharded;
      reach(at, {here.level, sharded, owed, here.residual},
            seconds_of(kind, along, together, apart, level.rows, level.row_bytes),
            {.by_stage = false, .kind = kind, .along = along});
    };
    for_each_subset(here.owed, [&](AxisSet along) {
      move(CollectiveKind::kAllReduce, along, here.sharded, here.owed - along);
      move(CollectiveKind::kReduceScatter, along, here.sharded | along, here.owed - along);
    });
    for_each_subset(axes_.all() - here.sharded - here.owed,
                    [&](AxisSet along) { move(CollectiveKind::kSlice, along, here.sharded | along, here.owed); });
    if (here.owed.empty())
      for_each_subset(here.sharded,
                      [&](AxisSet along) { move(CollectiveKind::kAllGather, along, here.sharded - along, {}); });
    if (here.level < static_cast<int>(stages_.size())) pass_stage(at, here, stages_[here.level]);
  }

  // To where the delta is: slices first, so that less is gathered.
  double residual_seconds(const State& here) const {
    const AxisSet from = *here.residual, to = here.sharded;
    const double row_bytes = levels_[0].row_bytes, rows = levels_[here.level].rows;
    double seconds = 0;
    if (const AxisSet along = to - from; !along.empty())
      seconds += seconds_of(CollectiveKind::kSlice, along, from, from | to, rows, row_bytes);
    if (const AxisSet along = from - to; !along.empty())
      seconds += seconds_of(CollectiveKind::kAllGather, along, to, from | to, rows, row_bytes);
    return seconds;
  }

  // Selected rows become summands, so a residual elsewhere joins the same sum, if the sum reaches all of its shards.
  bool selects_residual_in_place(const State& here) const {
    const AxisSet kept = here.sharded & axes_.attn_dp(), summed = here.owed | (here.sharded - axes_.attn_dp());
    return here.residual->contains(kept) && summed.contains(*here.residual - kept);
  }

  void pass_stage(int at, const State& here, const StageDeclaration& stage) {
    if (stage.kind != StageKind::kSelectRows && !here.owed.empty()) return;
    if (stage.needs && (stage.needs->sharded != here.sharded || stage.needs->order != levels_[here.level].order) &&
        stage.kind != StageKind::kEmbedding)
      return;
    const CostModel& costs = planner_.costs_;
    State next{here.level + 1, here.sharded, here.owed | stage.owes, here.residual};
    double seconds = rows_held(here) * stage.row_flops / costs.flops_per_second;
    const double pass = rows_held(here) * levels_[here.level].row_bytes / costs.local_bytes_per_second;
    switch (stage.kind) {
      case StageKind::kEmbedding:
        next.sharded = stage.needs->sharded;
        break;
      case StageKind::kAddNorm:
        if (here.residual) seconds += residual_seconds(here);
        seconds += costs.call_s + 4 * pass;  // reads and writes both streams
        next.residual = here.sharded;
        break;
      case StageKind::kLatentProjection:
        seconds += costs.call_s + pass;
        break;
      case StageKind::kSharedExpert:
        if (here.residual != here.sharded) return;
        seconds += costs.call_s + pass;
        break;
      case StageKind::kResidualAdd:
        if (here.residual) seconds += residual_seconds(here) + 2 * pass;
        next.residual.reset();
        break;
      case StageKind::kSendReceive:
        if (here.residual) return;
        seconds += costs.call_s + costs.host_round_s +
                   rows_held(here) * levels_[here.level].row_bytes / costs.host_bytes_per_second;
        break;
      case StageKind::kSelectRows:
        if (here.residual && !selects_residual_in_place(here)) seconds += residual_seconds(here);
        next.sharded = here.sharded & axes_.attn_dp();
        next.owed = here.owed | (here.sharded - axes_.attn_dp());
        next.residual.reset();
        break;
      case StageKind::kHead:
        next.residual.reset();
        break;
      case StageKind::kAttention:
      case StageKind::kDenseMlp:
      case StageKind::kExperts:
        break;
    }
    reach(at, next, seconds, {.by_stage = true});
  }

  Layout layout(const State& at, AxisSet sharded) const { return {sharded, levels_[at.level].order}; }
  Placement placement(const State& at) const { return {layout(at, at.sharded), at.owed}; }

  Collective collective(CollectiveKind kind, Payload payload, AxisSet along, const Placement& before,
                        const Placement& after, double row_bytes) const {
    return {.kind = kind,
            .payload = payload,
            .axes = along,
            .before = before,
            .after = after,
            .row_bytes = static_cast<int64_t>(row_bytes),
            .uneven = along.meets(axes_.attn_dp())};
  }

  void emit_residual_moves(const State& at, std::vector<PlanStep>& steps) const {
    const AxisSet from = *at.residual, to = at.sharded;
    const double row_bytes = levels_[0].row_bytes;
    if (const AxisSet along = to - from; !along.empty())
      steps.push_back(collective(CollectiveKind::kSlice, Payload::kResidual, along, {layout(at, from), {}},
                                 {layout(at, from | to), {}}, row_bytes));
    if (const AxisSet along = from - to; !along.empty())
      steps.push_back(collective(CollectiveKind::kAllGather, Payload::kResidual, along, {layout(at, from | to), {}},
                                 {layout(at, to), {}}, row_bytes));
  }

  void emit(const State& before, const Node& how, const State& after, std::vector<PlanStep>& steps) const {
    if (!how.by_stage) {
      steps.push_back(collective(how.kind, Payload::kDelta, how.along, placement(before), placement(after),
                                 levels_[before.level].row_bytes));
      return;
    }
    const StageDeclaration& stage = stages_[before.level];
    std::optional<Layout> residual;
    if (before.residual) residual = layout(before, *before.residual);
    const bool moves_residual =
        stage.kind == StageKind::kAddNorm || stage.kind == StageKind::kResidualAdd ||
        (stage.kind == StageKind::kSelectRows && before.residual && !selects_residual_in_place(before));
    if (before.residual && moves_residual) {
      emit_residual_moves(before, steps);
      residual = layout(before, before.sharded);
    }
    steps.push_back(StageStep{stage, placement(before), residual, placement(after)});
  }

  const Planner& planner_;
  const TokenAxes& axes_;
  const std::vector<StageDeclaration>& stages_;
  const StreamState& in_;
  const uint32_t sets_;
  std::vector<Level> levels_;  // [stages + 1]
  std::vector<Node> nodes_;
  std::priority_queue<std::pair<double, int>, std::vector<std::pair<double, int>>, std::greater<>> queue_;
};

Result<std::vector<Collective>> Planner::edge(std::string_view where, const Placement& have, const Placement& need,
                                              int64_t row_bytes) const {
  const auto refuse = [&](std::string_view why) {
    return unsupported(
        fmt::format("{}: has {}, needs {}: {}", where, describe(axes_, have), describe(axes_, need), why));
  };
  if (have.layout.order != need.layout.order) return refuse("no collective changes the order of rows");
  if (!have.owed.contains(need.owed)) return refuse("a sum that is complete cannot be owed again");
  const std::vector<StageDeclaration> no_stages;
  const StreamState in{have, std::nullopt}, out{need, std::nullopt};
  StreamSearch search(*this, no_stages, in, row_bytes, row_bytes);
  search.run({out});
  const std::optional<Segment> found = search.segment(SegmentKind::kDenseLayer, out);
  if (!found) return refuse("no collectives lead there");
  std::vector<Collective> collectives;
  for (const PlanStep& step : found->steps) collectives.push_back(std::get<Collective>(step));
  return collectives;
}

Result<std::vector<std::optional<Segment>>> Planner::segments(std::string_view where, SegmentKind kind,
                                                              const std::vector<StageDeclaration>& stages,
                                                              const StreamState& in,
                                                              const std::vector<StreamState>& outs, int64_t row_bytes,
                                                              int64_t element_bytes) const {
  StreamSearch search(*this, stages, in, row_bytes, element_bytes);
  search.run(outs);
  if (const int passed = search.stages_passed(); passed < static_cast<int>(stages.size())) {
    const StageDeclaration& stage = stages[passed];
    return unsupported(fmt::format(
        "{}: {} is out of reach: comes in with {}, needs {}; no collective changes the order of rows", where,
        name_of(stage.kind), describe(axes_, in.delta),
        stage.needs ? describe(axes_, *stage.needs) : std::string("complete rows and the residual beside them")));
  }
  std::vector<std::optional<Segment>> found;
  for (const StreamState& out : outs) found.push_back(search.segment(kind, out));
  return found;
}

}  // namespace plait
