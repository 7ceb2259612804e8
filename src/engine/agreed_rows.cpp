#include "engine/agreed_rows.h"

#include "layout/planner.h"

namespace plait {

Result<std::vector<Plan>> make_step_plans(const Topology& topology, const ModelFacts& facts) {
  std::vector<Plan> plans;
  for (const bool context_parallel : {false, true}) {
    if (context_parallel && topology.config().attn_cp_size == 1) continue;
    PLAIT_ASSIGN_OR_RETURN(plans.emplace_back(), make_plan(topology, facts, {.context_parallel = context_parallel}));
  }
  return plans;
}

size_t plan_of_step(const ParallelConfig& config, std::span<const int64_t> true_rows) {
  return uses_context_parallel(config, true_rows) ? 1 : 0;
}

AgreedRows agree_rows(const Plan& plan, std::vector<int64_t> rows, std::vector<int64_t> logit_rows, bool any_prefill,
                      std::optional<PaddingMode> padding) {
  const RowAlignment alignment = plan.alignment();
  const PaddingMode mode = padding.value_or(choose_padding_mode(rows, alignment, any_prefill, /*graph_replay=*/false));
  return {pad_rows(std::move(rows), alignment, mode),
          pad_rows(std::move(logit_rows), {.shards = alignment.shards}, mode)};
}

}  // namespace plait
