// What all ranks know of a step from row counts alone: which plan it takes, how rows are padded, how they reach their
// experts. The same functions serve steps (rank_team) and the list of everything that a step can be (rank_calls).
//
// Values and pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "layout/plan.h"
#include "layout/step_rows.h"
#include "topology/topology.h"

namespace plait {

// A plan for each form of step that an engine makes: [0] rows are not divided over context ranks; [1] they are, if
// there are several.
Result<std::vector<Plan>> make_step_plans(const Topology& topology, const ModelFacts& facts);

// Which of them is that of a step with so many rows of each data-parallel rank.
size_t plan_of_step(const ParallelConfig& config, std::span<const int64_t> true_rows);

struct AgreedRows {
  StepRows tokens;
  StepRows logits;  // rows whose logits are wanted
};
// `any_prefill`: some data-parallel rank has rows of a prompt. `padding`: that mode instead of the usual one.
AgreedRows agree_rows(const Plan& plan, std::vector<int64_t> rows, std::vector<int64_t> logit_rows, bool any_prefill,
                      std::optional<PaddingMode> padding = std::nullopt);

}  // namespace plait
