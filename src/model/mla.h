// Multi-head latent attention as an attention kind: what it remembers, how a step's rows divide over its two forms, and
// the sub-block from normed hidden state to output projection.
//
// Everything is a function of its arguments; memory belongs to the model (weights), the engine (KV) and the context
// (scratch). Called by the rank's own thread. Reads rows, writes rows: no communication; in a sharded model `heads` are
// the local ones and the output owes a sum.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "checkpoint/model_config.h"
#include "kernels/attention.h"
#include "kernels/context.h"
#include "kernels/rope.h"
#include "model/deepseek_weights.h"
#include "model/kv_spec.h"
#include "model/step.h"
#include "tensor/matrix.h"

namespace plait {

// How the rows of one step attend: those below their sequence's expanded_until in expanded form, the others absorbed.
// Refers to the step's page tables. assign() reuses the memory of the step before.
struct MlaRows {
  // Rows of the buffer that attends: `own[i]` is the step's row that stands there, one that no sequence has if it pads.
  // Empty: the step's rows as they are.
  void assign(const Step& step, std::span<const int64_t> own);

  // Consecutive absorbed rows; they are computed on compact buffers, without the expanded rows between them.
  struct AbsorbedRun {
    int64_t row_begin = 0;      // in the buffer
    int64_t compact_begin = 0;  // among the absorbed rows
    int64_t row_count = 0;
  };

  std::vector<kernels::AttentionSpan> all;       // one per sequence; row_begin in the step
  std::vector<kernels::AttentionSpan> expanded;  // row_begin in the buffer
  std::vector<kernels::AttentionSpan> absorbed;  // row_begin among the absorbed rows
  std::vector<AbsorbedRun> runs;
  int64_t expanded_rows = 0;
  int64_t absorbed_rows = 0;
  std::vector<int32_t> positions;  // [rows of the buffer]; 0 where it pads
  std::vector<int64_t> padding;    // rows of the buffer that no sequence has, ascending

 private:
  void add(kernels::AttentionSpan span, bool is_expanded);
};

class MlaAttention {
 public:
  // `heads`: the local ones.
  MlaAttention(const ModelConfig& config, int64_t heads, kernels::Activation activation);

  // One latent per token and layer: kv_lora_rank values after the norm, then qk_rope_head_dim after the rotation.
  KvComponent kv_component(int64_t layers) const;
  kernels::LatentCache cache(void* layer_data, int64_t page_tokens) const;

  // All that the hidden state feeds, in one product; a row's result needs no other row, so that in a sharded model it
  // may come before rows are gathered. x: [rows, hidden], normed; y: [rows, projection_width()]
  int64_t projection_width() const { return query_rows_ + latent_ + rope_; }
  void project(const kernels::Context& context, const MlaWeights& weights, ConstRows x, Rows y) const;
  // projected: what project() made, changed in place; y: [rows, hidden]. Stores the rows' latents in `cache`, then
  // attends. Padding rows get zeros.
  // `all_latents` gets the latents of the own rows and returns those of all the step's rows, [rows, latent + rope], in
  // the step's order; empty: they are the same.
  using AllLatents = std::function<ConstRows(ConstRows own)>;
  void attend(const kernels::Context& context, const MlaWeights& weights, const MlaRows& rows,
              const kernels::LatentCache& cache, Rows projected, const AllLatents& all_latents, Rows y) const;

  // Most scratch of forward() itself, and of the attention kernels, whatever forms the rows take.
  size_t scratch_bytes(int64_t rows) const;
  size_t kernel_scratch_bytes(int64_t rows, int64_t context_tokens) const;
  // Of one layer, without the projections that all rows have in common.
  double attention_flops(const StepSequence& sequence) const;

 private:
  struct QueriesAndLatents;
  QueriesAndLatents finish_projection(const kernels::Context& context, const MlaWeights& weights,
                                      std::span<const int32_t> positions, Rows projected) const;
  void attend_absorbed(const kernels::Context& context, const MlaWeights& weights, const MlaRows& rows,
                       const kernels::LatentCache& cache, kernels::HeadRows q, kernels::HeadRows out) const;

  const int64_t heads_;
  const int64_t nope_;         // qk_nope_head_dim
  const int64_t rope_;         // qk_rope_head_dim
  const int64_t v_;            // v_head_dim
  const int64_t latent_;       // kv_lora_rank
  const int64_t q_lora_rank_;  // 0: queries straight from the hidden state
  const int64_t query_rows_;  // q_lora_rank, or heads * (nope + rope): rows of the stacked projection before the latent
  const kernels::RopeTable rope_table_;
  const float softmax_scale_;
  const DType cache_dtype_;
};

}  // namespace plait
