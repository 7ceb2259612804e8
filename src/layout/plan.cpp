#include "layout/plan.h"

#include "layout/cost.h"

namespace plait {
namespace {

// Rows that a rank holds for each token of a data-parallel rank.
double rows_held(const Plan& plan, AxisSet sharded) {
  return static_cast<double>(plan.axes.width(plan.axes.attn_dp())) / plan.axes.width(sharded);
}

// The norm that follows the all-reduce at `index` with a residual addition. Moves of the residual may stand between.
std::optional<size_t> add_norm_after(const std::vector<PlanStep>& steps, size_t index) {
  const auto* reduce = std::get_if<Collective>(&steps[index]);
  if (!reduce || reduce->kind != CollectiveKind::kAllReduce || !reduce->after.owed.empty()) return std::nullopt;
  for (size_t i = index + 1; i < steps.size(); ++i) {
    if (const auto* stage = std::get_if<StageStep>(&steps[i])) {
      const bool adds = stage->stage.kind == StageKind::kAddNorm && stage->residual.has_value();
      return adds ? std::optional(i) : std::nullopt;
    }
    const auto* move = std::get_if<Collective>(&steps[i]);
    if (!move || move->payload != Payload::kResidual) return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace

void fuse_all_reduces(std::vector<PlanStep>& steps) {
  for (size_t i = 0; i < steps.size(); ++i) {
    const std::optional<size_t> norm = add_norm_after(steps, i);
    if (!norm) continue;
    steps[*norm] = FusedAllReduceAddNorm{std::get<Collective>(steps[i]), std::get<StageStep>(steps[*norm])};
    steps.erase(steps.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

RowAlignment Plan::alignment(int64_t tokens_per_request) const {
  const int64_t blocks = config.attn_cp_size * (config.strategy() == CpStrategy::kZigzag ? 2 : 1);
  return {.shards = axes.width(divided - axes.attn_dp()),
          .context_blocks = form.context_parallel ? blocks : 1,
          .tokens_per_request = tokens_per_request};
}

std::vector<AxisSet> Plan::groups() const {
  std::vector<AxisSet> groups;
  const auto add = [&](CollectiveKind kind, AxisSet along) {
    if (kind == CollectiveKind::kSlice || along.empty()) return;
    if (std::find(groups.begin(), groups.end(), along) == groups.end()) groups.push_back(along);
  };
  for (const Segment& segment : segments)
    for (const PlanStep& step : segment.steps) {
      if (const auto* collective = std::get_if<Collective>(&step)) add(collective->kind, collective->axes);
      if (const auto* fused = std::get_if<FusedAllReduceAddNorm>(&step))
        add(fused->all_reduce.kind, fused->all_reduce.axes);
      if (const auto* stage = std::get_if<StageStep>(&step))
        for (const StageTraffic& traffic : stage->stage.inside) add(traffic.kind, traffic.axes);
    }
  return groups;
}

double bytes_per_token(const Plan& plan, const Collective& collective) {
  // All rows of the group: those of the side on which each rank has more.
  const AxisSet sharded = collective.before.layout.sharded & collective.after.layout.sharded;
  const double full = rows_held(plan, sharded) * static_cast<double>(collective.row_bytes);
  return ring_bytes(collective.kind, plan.axes.width(collective.axes), full);
}

double bytes_per_token(const Plan& plan, const StageTraffic& traffic, const Layout& rows) {
  if (traffic.of_history)
    return ring_bytes(traffic.kind, plan.axes.width(traffic.axes), static_cast<double>(traffic.row_bytes));
  const double own = rows_held(plan, rows.sharded) * static_cast<double>(traffic.row_bytes);
  if (traffic.kind == CollectiveKind::kAllToAll) return own * traffic.rows_per_token;
  // Rows come together along axes that shard them, columns along the others.
  const int ranks = plan.axes.width(traffic.axes);
  return ring_bytes(traffic.kind, ranks, rows.sharded.meets(traffic.axes) ? own * ranks : own);
}

double bytes_per_token(const Plan& plan, const StageStep& send) {
  return rows_held(plan, send.in.layout.sharded) * static_cast<double>(plan.facts.hidden * plan.facts.activation_bytes);
}

}  // namespace plait
