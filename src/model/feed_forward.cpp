#include "model/feed_forward.h"

#include "kernels/activation.h"
#include "kernels/experts.h"
#include "kernels/gate.h"
#include "model/scratch.h"

namespace plait {
namespace {

using kernels::Context;
using kernels::ExpertOrder;
using kernels::RowGroup;

// silu(gate) * up. gate_up: [rows, 2 * width]; result: [rows, width]
ConstRows activate(const Context& context, ConstRows gate_up) {
  const Rows activated = scratch::rows(context, scratch::kActivated, gate_up.rows, gate_up.cols / 2);
  kernels::swiglu(context, gate_up, activated);
  return activated;
}

}  // namespace

void feed_forward(const Context& context, const FeedForwardWeights& weights, ConstRows x, Rows y) {
  if (weights.down.in_features() == 0) {
    std::fill_n(y.data, y.rows * y.cols, 0.0f);
    return;
  }
  const Rows gate_up = scratch::rows(context, scratch::kGateUp, x.rows, weights.gate_up.out_features());
  kernels::linear(context, x, weights.gate_up, gate_up);
  kernels::linear(context, activate(context, gate_up), weights.down, y);
}

size_t feed_forward_scratch_bytes(int64_t rows, int64_t width) {
  return rows * 3 * width * sizeof(float);
}

ExpertLayer::ExpertLayer(const ModelConfig& config) : gate_(config.gate) {}

Routing ExpertLayer::route(const Context& context, const MoeWeights& weights, ConstRows x) const {
  const int64_t pairs = x.rows * gate_.experts_per_token;
  const Rows logits = scratch::rows(context, scratch::kGateUp, x.rows, gate_.experts);
  kernels::router_logits(context, x, ConstRows(weights.router.data(), gate_.experts, x.cols), logits);
  const Routing routing{context.workspace->get_array<int32_t>(scratch::kRouting, pairs),
                        context.workspace->get_array<float>(scratch::kExpertWeight, pairs)};
  const float* bias = weights.correction_bias.empty() ? nullptr : weights.correction_bias.data();
  kernels::choose_experts(context, gate_, logits, bias, routing.expert_ids, routing.weights);
  return routing;
}

void ExpertLayer::shared(const Context& context, const MoeWeights& weights, ConstRows x, Rows y) const {
  feed_forward(context, weights.shared, x, y);
}

void ExpertLayer::routed(const Context& context, const MoeWeights& weights, const Routing& routing, ConstRows x,
                         Rows y) {
  if (weights.experts.empty() || weights.experts.front().down.in_features() == 0) return;
  const int64_t k = gate_.experts_per_token;
  const ExpertOrder order = ExpertOrder::make({routing.expert_ids, static_cast<size_t>(x.rows * k)}, x.rows, k,
                                              weights.first_expert, static_cast<int32_t>(weights.experts.size()));
  gate_up_groups_.clear();
  down_groups_.clear();
  for (size_t group = 0; group < order.expert_of_group.size(); ++group) {
    const FeedForwardWeights& expert = weights.experts[order.expert_of_group[group] - weights.first_expert];
    const int64_t begin = order.group_begin[group], count = order.group_begin[group + 1] - begin;
    gate_up_groups_.push_back({&expert.gate_up, begin, count});
    down_groups_.push_back({&expert.down, begin, count});
  }

  const auto rows = static_cast<int64_t>(order.token_of_row.size());
  const Rows in = scratch::rows(context, scratch::kExpertIn, rows, x.cols);
  kernels::gather_rows(context, x, order.token_of_row, in);
  const Rows out = scratch::rows(context, scratch::kExpertOut, rows, y.cols);
  compute_groups(context, weights, in, out);
  kernels::combine_rows(context, out, order, routing.weights, k, y);
}

void ExpertLayer::expert_rows(const Context& context, const MoeWeights& weights, ConstRows x,
                              std::span<const int64_t> first_row, std::span<const int64_t> row_count, Rows y) {
  gate_up_groups_.clear();
  down_groups_.clear();
  for (size_t expert = 0; expert < weights.experts.size(); ++expert) {
    if (row_count[expert] == 0) continue;
    gate_up_groups_.push_back({&weights.experts[expert].gate_up, first_row[expert], row_count[expert]});
    down_groups_.push_back({&weights.experts[expert].down, first_row[expert], row_count[expert]});
  }
  if (!gate_up_groups_.empty()) compute_groups(context, weights, x, y);
}

// The rows of the groups that were listed.
void ExpertLayer::compute_groups(const Context& context, const MoeWeights& weights, ConstRows x, Rows y) {
  const Rows gate_up = scratch::rows(context, scratch::kGateUp, x.rows, weights.experts.front().gate_up.out_features());
  kernels::grouped_linear(context, x, gate_up_groups_, gate_up);
  kernels::grouped_linear(context, activate(context, gate_up), down_groups_, y);
}

size_t ExpertLayer::scratch_bytes(const ModelConfig& config, int64_t rows) const {
  const int64_t pairs = rows * gate_.experts_per_token;
  const int64_t hidden = config.hidden_size;
  const size_t routed = feed_forward_scratch_bytes(pairs, config.moe_intermediate_size);
  const size_t shared = feed_forward_scratch_bytes(rows, config.n_shared_experts * config.moe_intermediate_size);
  const size_t logits = rows * gate_.experts * sizeof(float);
  return std::max({routed, shared, logits}) + (2 * pairs * hidden + 2 * pairs) * sizeof(float);
}

}  // namespace plait
