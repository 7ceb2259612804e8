// Multi-head latent attention over a paged cache of latents.
//
// The cache keeps, per token and layer, kv_lora_rank numbers (after the norm) and qk_rope_head_dim numbers (after the
// rotation), nothing per head. Two forms give the same mathematics: *expanded* makes keys and values of every head from
// the latents (cheaper for many new rows), *absorbed* moves those matrices to the query and output side (cheaper for
// few). Which form a row uses is a property of the request (Step), not of the batch. Keys are visited in tiles at fixed
// absolute positions, so that neither chunk borders nor the cached part change a bit of the result.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/context.h"
#include "kernels/linear.h"
#include "tensor/dtype.h"

namespace plait::kernels {

// The latents of one layer. Token position p of a sequence lies in page pages[p / page_tokens] at row p % page_tokens.
struct LatentCache {
  void* data = nullptr;       // [pages, page_tokens, latent_width + rope_width]
  DType dtype = DType::kF32;  // or kBF16
  int64_t page_tokens = 0;
  int64_t latent_width = 0;  // kv_lora_rank
  int64_t rope_width = 0;    // qk_rope_head_dim
  int64_t row_width() const { return latent_width + rope_width; }
};

// Consecutive rows of a buffer that belong to one sequence and use one form.
struct AttentionSpan {
  std::span<const int32_t> pages;  // page table, covers every position up to the last row's
  int64_t first_position = 0;      // of the first row
  int64_t row_begin = 0;           // in the buffer
  int64_t row_count = 0;
  int64_t position_step = 1;  // between neighbouring rows: more where other ranks have the rows between

  int64_t position(int64_t row) const { return first_position + row * position_step; }
  int64_t length() const { return position(row_count - 1) + 1; }  // tokens that the last row sees
};

// Stores rows in the cache. latent: [tokens, latent_width + rope_width], row i of a span goes to its position.
void store_latents(const Context& context, ConstRows latent, std::span<const AttentionSpan> spans,
                   const LatentCache& cache);

// q: [tokens, heads, latent_width + rope_width] (absorbed query, rotated part last); out: [tokens, heads,
// latent_width]. Row at position p sees positions 0..p, which are already stored.
void attend_absorbed(const Context& context, HeadRows q, const LatentCache& cache, std::span<const AttentionSpan> spans,
                     float scale, HeadRows out);

// q: [tokens, heads, nope + rope]; kv_b: [heads * (nope + v), latent_width], per head first the rows that make keys,
// then those that make values; out: [tokens, heads, v]. Row at position p sees positions 0..p, which are already
// stored.
void attend_expanded(const Context& context, HeadRows q, const LatentCache& cache, const PackedMatrix& kv_b,
                     int64_t nope_width, std::span<const AttentionSpan> spans, float scale, HeadRows out);

}  // namespace plait::kernels
