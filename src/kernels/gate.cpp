#include "kernels/gate.h"

#include "base/assert.h"
#include "kernels/cpu/gate_selection.h"
#include "kernels/cpu/implementations.h"

namespace plait::kernels {
namespace {

constexpr float kAbsent = -std::numeric_limits<float>::infinity();

float absent_if_nan(float score) {
  return std::isnan(score) ? kAbsent : score;
}

// Index of the largest of values that is not taken; the first of equals. At least one must be free.
template <typename IsTaken>
int32_t best_free(std::span<const float> values, IsTaken is_taken) {
  int32_t best = -1;
  for (int32_t i = 0; i < std::ssize(values); ++i)
    if (!is_taken(i) && (best < 0 || values[i] > values[best])) best = i;
  return best;
}

// ids: [k], the k largest of values in descending order, the lower index first among equals.
void top_k(std::span<const float> values, int32_t k, int32_t* ids) {
  for (int32_t slot = 0; slot < k; ++slot)
    ids[slot] = best_free(values, [&](int32_t i) { return std::find(ids, ids + slot, i) != ids + slot; });
}

// V2: the best of a group; V3: the sum of the two best.
float group_score(std::span<const float> group, GateMethod method) {
  float best = kAbsent, second = kAbsent;
  for (const float value : group) {
    second = std::max(second, std::min(best, value));
    best = std::max(best, value);
  }
  return absent_if_nan(method == GateMethod::kNoAuxTc && group.size() > 1 ? best + second : best);
}

// Groups that lose become -infinity; a smaller number would do for scores, which are positive, but not for biased ones.
void mask_groups(const GateConfig& config, std::span<float> choice, std::span<float> group_scores) {
  const auto group_size = static_cast<int64_t>(choice.size() / group_scores.size());
  const auto group = [&](int64_t g) { return choice.subspan(g * group_size, group_size); };
  for (int64_t g = 0; g < config.groups; ++g) group_scores[g] = group_score(group(g), config.method);
  // A group stays if fewer than kept_groups are better; equal ones: the lower index is the better.
  for (int64_t g = 0; g < config.groups; ++g) {
    int32_t better = 0;
    for (int64_t other = 0; other < config.groups; ++other)
      better += group_scores[other] > group_scores[g] || (group_scores[other] == group_scores[g] && other < g);
    if (better >= config.kept_groups) std::ranges::fill(group(g), kAbsent);
  }
}

}  // namespace

void select_experts(const GateConfig& config, std::span<const float> scores, const float* bias, float* scratch,
                    int32_t* expert_ids, float* expert_weights) {
  const std::span choice(scratch, scores.size());
  for (size_t e = 0; e < scores.size(); ++e) choice[e] = absent_if_nan(bias ? scores[e] + bias[e] : scores[e]);
  if (config.method != GateMethod::kGreedy && config.groups > 1)
    mask_groups(config, choice, {scratch + scores.size(), static_cast<size_t>(config.groups)});
  top_k(choice, config.experts_per_token, expert_ids);

  float sum = 0;
  for (int32_t slot = 0; slot < config.experts_per_token; ++slot) {
    expert_weights[slot] = scores[expert_ids[slot]];
    sum += expert_weights[slot];
  }
  for (int32_t slot = 0; slot < config.experts_per_token; ++slot) {
    if (config.normalise) expert_weights[slot] /= sum + 1e-20f;
    expert_weights[slot] *= config.scaling_factor;
  }
}

void choose_experts(const Context& context, const GateConfig& config, ConstRows logits, const float* bias,
                    int32_t* expert_ids, float* expert_weights) {
  PLAIT_ASSERT(logits.cols == config.experts, "gate: one logit per expert");
  PLAIT_ASSERT(config.experts_per_token > 0 && config.experts_per_token <= config.experts, "gate: experts per token");
  PLAIT_ASSERT(config.groups > 0 && config.experts % config.groups == 0, "gate: groups of equal size");
  PLAIT_ASSERT(config.kept_groups > 0 && config.kept_groups <= config.groups, "gate: kept groups");
  PLAIT_ASSERT(!bias || config.method == GateMethod::kNoAuxTc, "gate: only noaux_tc has a bias");
  operations_of(context).choose_experts(context, config, logits, bias, expert_ids, expert_weights);
}

void router_logits(const Context& context, ConstRows x, ConstRows weight, Rows logits) {
  PLAIT_ASSERT(x.rows == logits.rows && x.cols == weight.cols && weight.rows == logits.cols,
               "router: logits [tokens, experts] = x [tokens, hidden] times weight [experts, hidden]");
  operations_of(context).router_logits(context, x, weight, logits);
}

}  // namespace plait::kernels
