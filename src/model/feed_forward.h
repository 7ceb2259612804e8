// The feed-forward sub-block: one SwiGLU network for dense layers, gate and experts for the others.
//
// Functions of their arguments, like mla.h. The expert layer is a chain of stages (route, order, grouped products,
// combine) over rows in expert order, so that dispatch to other ranks can take the place of the local order.
#pragma once

#include <cstdint>
#include <vector>

#include "checkpoint/model_config.h"
#include "kernels/context.h"
#include "kernels/linear.h"
#include "model/deepseek_weights.h"
#include "tensor/matrix.h"

namespace plait {

// y = down(silu(gate(x)) * up(x)), zeros if no part of the width is local. x: [rows, hidden]; y: [rows, hidden]
void feed_forward(const kernels::Context& context, const FeedForwardWeights& weights, ConstRows x, Rows y);
size_t feed_forward_scratch_bytes(int64_t rows, int64_t width);

class ExpertLayer {
 public:
  explicit ExpertLayer(const ModelConfig& config);

  Routing route(const kernels::Context& context, const MoeWeights& weights, ConstRows x) const;
  // y = shared experts(x), zeros if there are none. x, y: [rows, hidden]
  void shared(const kernels::Context& context, const MoeWeights& weights, ConstRows x, Rows y) const;
  // y = expert(x) for rows that are in the order of experts already: those of local expert e begin at first_row[e].
  // Rows of no expert are neither read nor written. x, y: [rows, hidden]
  void expert_rows(const kernels::Context& context, const MoeWeights& weights, ConstRows x,
                   std::span<const int64_t> first_row, std::span<const int64_t> row_count, Rows y);
  // y += sum over the local routed experts of weight * expert(x). x, y: [rows, hidden]
  void routed(const kernels::Context& context, const MoeWeights& weights, const Routing& routing, ConstRows x, Rows y);

  size_t scratch_bytes(const ModelConfig& config, int64_t rows) const;

 private:
  const GateConfig gate_;
  void compute_groups(const kernels::Context& context, const MoeWeights& weights, ConstRows x, Rows y);

  // Reused from layer to layer
  std::vector<kernels::RowGroup> gate_up_groups_;
  std::vector<kernels::RowGroup> down_groups_;
};

}  // namespace plait
