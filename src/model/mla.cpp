#include "model/mla.h"

#include "base/assert.h"
#include "kernels/norm.h"
#include "model/scratch.h"

namespace plait {
namespace {

using kernels::AttentionSpan;
using kernels::Context;
using kernels::HeadRows;
using kernels::LatentCache;

// Of q_a_layernorm and kv_a_layernorm, whatever rms_norm_eps says.
constexpr float kLatentNormEps = 1e-6f;

// Columns [begin, begin + width) of every head.
HeadRows head_columns(HeadRows rows, int64_t begin, int64_t width) {
  rows.data += begin;
  rows.width = width;
  return rows;
}

HeadRows token_range(HeadRows rows, int64_t begin, int64_t count) {
  rows.data += begin * rows.token_stride;
  rows.tokens = count;
  return rows;
}

// [tokens, heads * width] as [tokens, heads, width]
HeadRows as_heads(Rows rows, int64_t heads) {
  const int64_t width = rows.cols / heads;
  return {rows.data, rows.rows, heads, width, rows.stride, width};
}

void copy_heads(const Context& context, HeadRows from, HeadRows to) {
  context.pool->parallel_for(from.tokens, /*grain=*/16, [&](int64_t begin, int64_t end, int) {
    for (int64_t token = begin; token < end; ++token)
      for (int64_t head = 0; head < from.heads; ++head)
        std::copy_n(from.at(token, head), from.width, to.at(token, head));
  });
}

}  // namespace

void MlaRows::assign(const Step& step, std::span<const int64_t> own) {
  all.clear();
  expanded.clear();
  absorbed.clear();
  runs.clear();
  positions.clear();
  padding.clear();
  expanded_rows = absorbed_rows = 0;
  for (const StepSequence& sequence : step.sequences)
    all.push_back({sequence.pages, sequence.first_position, sequence.row_begin, sequence.row_count});

  // Spans of rows of one sequence and form whose positions are equally far apart.
  const int64_t rows = own.empty() ? step.rows() : std::ssize(own);
  positions.assign(rows, 0);
  size_t at = 0;  // the sequence of the last row; rows ascend, except that zigzag's second block follows its first
  AttentionSpan span;
  bool span_expanded = false;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t step_row = own.empty() ? row : own[row];
    if (at < all.size() && step_row < all[at].row_begin) at = 0;
    while (at < all.size() && step_row >= all[at].row_begin + all[at].row_count) ++at;
    if (at == all.size()) {
      padding.push_back(row);
      at = 0;
      continue;
    }
    const int64_t position = all[at].position(step_row - all[at].row_begin);
    const bool is_expanded = position < step.sequences[at].expanded_until;
    positions[row] = static_cast<int32_t>(position);
    const bool same = span.row_count > 0 && span.row_begin + span.row_count == row &&
                      span.pages.data() == all[at].pages.data() && span_expanded == is_expanded;
    const int64_t distance = position - span.position(span.row_count - 1);
    if (same && distance > 0 && (span.row_count == 1 || distance == span.position_step)) {
      span.position_step = distance;
      ++span.row_count;
      continue;
    }
    add(span, span_expanded);
    span = {all[at].pages, position, row, 1};
    span_expanded = is_expanded;
  }
  add(span, span_expanded);
}

void MlaRows::add(AttentionSpan span, bool is_expanded) {
  if (span.row_count == 0) return;
  if (span.row_count == 1) span.position_step = 1;
  if (is_expanded) {
    expanded.push_back(span);
    expanded_rows += span.row_count;
    return;
  }
  if (!runs.empty() && runs.back().row_begin + runs.back().row_count == span.row_begin)
    runs.back().row_count += span.row_count;
  else
    runs.push_back({span.row_begin, absorbed_rows, span.row_count});
  span.row_begin = absorbed_rows;
  absorbed.push_back(span);
  absorbed_rows += span.row_count;
}

MlaAttention::MlaAttention(const ModelConfig& config, int64_t heads, kernels::Activation activation)
    : heads_(heads),
      nope_(config.qk_nope_head_dim),
      rope_(config.qk_rope_head_dim),
      v_(config.v_head_dim),
      latent_(config.kv_lora_rank),
      q_lora_rank_(config.q_lora_rank.value_or(0)),
      query_rows_(config.q_lora_rank.value_or(heads * config.qk_head_dim())),
      rope_table_(kernels::RopeTable::make(config.rope, config.qk_rope_head_dim)),
      softmax_scale_(static_cast<float>(kernels::mla_softmax_scale(config.rope, config.qk_head_dim()))),
      cache_dtype_(activation == kernels::Activation::kFloat32 ? DType::kF32 : DType::kBF16) {}

KvComponent MlaAttention::kv_component(int64_t layers) const {
  KvComponent component;
  component.name = "latent";
  component.growth = KvGrowth::kPerToken;
  component.layers = layers;
  component.row_width = latent_ + rope_;
  component.dtype = cache_dtype_;
  return component;
}

LatentCache MlaAttention::cache(void* layer_data, int64_t page_tokens) const {
  return {layer_data, cache_dtype_, page_tokens, latent_, rope_};
}

void MlaAttention::project(const Context& context, const MlaWeights& weights, ConstRows x, Rows y) const {
  kernels::linear(context, x, weights.query_latent, y);
}

struct MlaAttention::QueriesAndLatents {
  HeadRows query;  // [rows, heads, nope + rope], rotated
  Rows latent;     // [rows, kv_lora_rank + rope], normed and rotated
};

// Norms, the second query projection and rotations: what is left to do before anything attends.
MlaAttention::QueriesAndLatents MlaAttention::finish_projection(const Context& context, const MlaWeights& weights,
                                                                std::span<const int32_t> positions,
                                                                Rows projected) const {
  const int64_t rows = projected.rows;
  const Rows query_part = projected.slice_cols(0, query_rows_);
  const Rows latent = projected.slice_cols(query_rows_, latent_ + rope_);
  HeadRows query;
  if (q_lora_rank_ > 0) {
    kernels::rms_norm(context, query_part, weights.q_a_norm.data(), kLatentNormEps, query_part);
    const Rows all_heads = scratch::rows(context, scratch::kQuery, rows, heads_ * (nope_ + rope_));
    kernels::linear(context, query_part, weights.q_b, all_heads);
    query = as_heads(all_heads, heads_);
  } else {
    query = as_heads(query_part, heads_);
  }
  kernels::rope_interleaved(context, rope_table_, positions, head_columns(query, nope_, rope_));

  const Rows normed = latent.slice_cols(0, latent_);
  kernels::rms_norm(context, normed, weights.kv_a_norm.data(), kLatentNormEps, normed);
  kernels::rope_interleaved(context, rope_table_, positions, as_heads(latent.slice_cols(latent_, rope_), 1));
  return {query, latent};
}

void MlaAttention::attend_absorbed(const Context& context, const MlaWeights& weights, const MlaRows& rows,
                                   const LatentCache& cache, HeadRows q, HeadRows out) const {
  const int64_t count = rows.absorbed_rows;
  const HeadRows absorbed_q =
      as_heads(scratch::rows(context, scratch::kAbsorbedQuery, count, heads_ * (latent_ + rope_)), heads_);
  const HeadRows absorbed_out =
      as_heads(scratch::rows(context, scratch::kAbsorbedOut, count, heads_ * latent_), heads_);

  for (const MlaRows::AbsorbedRun& run : rows.runs) {
    const HeadRows from = token_range(q, run.row_begin, run.row_count);
    const HeadRows to = token_range(absorbed_q, run.compact_begin, run.row_count);
    kernels::head_linear(context, head_columns(from, 0, nope_), weights.w_uk, head_columns(to, 0, latent_));
    copy_heads(context, head_columns(from, nope_, rope_), head_columns(to, latent_, rope_));
  }
  kernels::attend_absorbed(context, absorbed_q, cache, rows.absorbed, softmax_scale_, absorbed_out);
  for (const MlaRows::AbsorbedRun& run : rows.runs)
    kernels::head_linear(context, token_range(absorbed_out, run.compact_begin, run.row_count), weights.w_uv,
                         token_range(out, run.row_begin, run.row_count));
}

void MlaAttention::attend(const Context& context, const MlaWeights& weights, const MlaRows& rows,
                          const LatentCache& cache, Rows projected, const AllLatents& all_latents, Rows y) const {
  const QueriesAndLatents made = finish_projection(context, weights, rows.positions, projected);
  kernels::store_latents(context, all_latents ? all_latents(made.latent) : made.latent, rows.all, cache);

  const Rows out = scratch::rows(context, scratch::kHeadOut, y.rows, heads_ * v_);
  const HeadRows head_out = as_heads(out, heads_);
  for (const int64_t row : rows.padding) std::fill_n(out.row(row), out.cols, 0.0f);
  if (rows.expanded_rows > 0)
    kernels::attend_expanded(context, made.query, cache, weights.kv_b, nope_, rows.expanded, softmax_scale_, head_out);
  if (rows.absorbed_rows > 0) attend_absorbed(context, weights, rows, cache, made.query, head_out);
  kernels::linear(context, out, weights.o, y);
}

size_t MlaAttention::scratch_bytes(int64_t rows) const {
  const int64_t query = q_lora_rank_ > 0 ? heads_ * (nope_ + rope_) : 0;
  const int64_t absorbed = heads_ * (latent_ + rope_ + latent_);
  return rows * (query_rows_ + latent_ + rope_ + query + absorbed + heads_ * v_) * sizeof(float);
}

size_t MlaAttention::kernel_scratch_bytes(int64_t rows, int64_t context_tokens) const {
  // Keys and values of every head for a stretch of tokens, twice: as projected, and cut into tiles with padding. And
  // the partial results of a wave of absorbed queries. The kernels bound each to some megabytes, or to one unit of
  // work.
  constexpr int64_t kBound = int64_t{4} << 20, kTileTokens = 64, kPartialTokens = 512, kPartials = 32;
  const int64_t expanded =
      std::max(heads_ * (nope_ + v_) * kTileTokens, std::min(kBound, heads_ * (nope_ + v_) * context_tokens));
  // Of one absorbed query, padded to vectors: itself, and what each of its partitions has seen.
  constexpr int64_t kVector = 16;
  const auto padded = [](int64_t width) { return (width / kVector + 2) * kVector; };
  const int64_t partitions = std::min(context_tokens / kPartialTokens + 1, kPartials);
  const int64_t query = padded(heads_) * (padded(latent_ + rope_) + partitions * padded(latent_ + 2));
  const int64_t wave = std::max(query, std::min(kBound, rows * query));
  const int64_t softmax = 2 * rows * heads_;
  return (expanded * 3 + wave + softmax) * sizeof(float);
}

double MlaAttention::attention_flops(const StepSequence& sequence) const {
  double flops = 0;
  const int64_t end = sequence.first_position + sequence.row_count;
  // Keys seen by rows [first, last): first + 1, ..., last.
  const auto keys = [](int64_t first, int64_t last) {
    return 0.5 * static_cast<double>(last - first) * static_cast<double>(first + 1 + last);
  };
  const int64_t border = std::clamp(sequence.expanded_until, sequence.first_position, end);
  if (border > sequence.first_position) {
    flops += 2.0 * heads_ * (nope_ + rope_ + v_) * keys(sequence.first_position, border);
    flops += 2.0 * heads_ * (nope_ + v_) * latent_ * static_cast<double>(border);
  }
  if (end > border) {
    flops += 2.0 * heads_ * (latent_ + rope_ + latent_) * keys(border, end);
    flops += 2.0 * heads_ * (nope_ + v_) * latent_ * static_cast<double>(end - border);
  }
  return flops;
}

}  // namespace plait
