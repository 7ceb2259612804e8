#include "kernels/attention.h"

#include "base/assert.h"
#include "kernels/cpu/implementations.h"

namespace plait::kernels {
namespace {

void check_spans(const LatentCache& cache, std::span<const AttentionSpan> spans, int64_t tokens) {
  PLAIT_ASSERT(cache.dtype == DType::kF32 || cache.dtype == DType::kBF16, "attention: float32 or bfloat16 cache");
  for (const AttentionSpan& span : spans) {
    PLAIT_ASSERT(span.row_begin >= 0 && span.row_begin + span.row_count <= tokens, "attention: span beyond the step");
    PLAIT_ASSERT(span.row_count == 0 || span.length() <= std::ssize(span.pages) * cache.page_tokens,
                 "attention: the page table ends before the span");
  }
}

}  // namespace

void store_latents(const Context& context, ConstRows latent, std::span<const AttentionSpan> spans,
                   const LatentCache& cache) {
  PLAIT_ASSERT(latent.cols == cache.row_width(), "attention: a latent row is [latent_width + rope_width]");
  check_spans(cache, spans, latent.rows);
  operations_of(context).store_latents(context, latent, spans, cache);
}

void attend_absorbed(const Context& context, HeadRows q, const LatentCache& cache, std::span<const AttentionSpan> spans,
                     float scale, HeadRows out) {
  PLAIT_ASSERT(q.width == cache.row_width() && out.width == cache.latent_width, "attention: widths of absorbed form");
  PLAIT_ASSERT(q.tokens == out.tokens && q.heads == out.heads, "attention: one result per query");
  check_spans(cache, spans, q.tokens);
  operations_of(context).attend_absorbed(context, q, cache, spans, scale, out);
}

void attend_expanded(const Context& context, HeadRows q, const LatentCache& cache, const PackedMatrix& kv_b,
                     int64_t nope_width, std::span<const AttentionSpan> spans, float scale, HeadRows out) {
  PLAIT_ASSERT(q.width == nope_width + cache.rope_width, "attention: a query is [nope + rope]");
  PLAIT_ASSERT(kv_b.in_features() == cache.latent_width && kv_b.out_features() == q.heads * (nope_width + out.width),
               "attention: kv_b is [heads * (nope + v), latent_width]");
  PLAIT_ASSERT(q.tokens == out.tokens && q.heads == out.heads, "attention: one result per query");
  check_spans(cache, spans, q.tokens);
  operations_of(context).attend_expanded(context, q, cache, kv_b, nope_width, spans, scale, out);
}

}  // namespace plait::kernels
