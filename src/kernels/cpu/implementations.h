// The implementations behind the operation headers. Only src/kernels includes this file: everybody else calls the
// operation, which checks shapes and picks one of these by Context::implementation. Contracts are in those headers.
#pragma once

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/embedding.h"
#include "kernels/experts.h"
#include "kernels/gate.h"
#include "kernels/norm.h"
#include "kernels/rope.h"

namespace plait::kernels {

struct Product;  // linear_product.h

// Plain loops, one thread: the specification.
namespace reference {
void rms_norm(const Context& context, ConstRows x, const float* weight, float eps, Rows y);
void add_rms_norm(const Context& context, ConstRows delta, Rows residual, const float* weight, float eps, Rows y);
void swiglu(const Context& context, ConstRows gate_up, Rows y);
void embed(const Context& context, const EmbeddingTable& table, std::span<const int32_t> token_ids, Rows y);
void rope_interleaved(const Context& context, const RopeTable& table, std::span<const int32_t> positions, HeadRows x);
void choose_experts(const Context& context, const GateConfig& config, ConstRows logits, const float* bias,
                    int32_t* expert_ids, float* expert_weights);
void router_logits(const Context& context, ConstRows x, ConstRows weight, Rows logits);
void gather_rows(const Context& context, ConstRows x, std::span<const int32_t> token_of_row, Rows y);
void combine_rows(const Context& context, ConstRows x, const ExpertOrder& order, const float* weights, int64_t k,
                  Rows y);
void store_latents(const Context& context, ConstRows latent, std::span<const AttentionSpan> spans,
                   const LatentCache& cache);
void attend_absorbed(const Context& context, HeadRows q, const LatentCache& cache, std::span<const AttentionSpan> spans,
                     float scale, HeadRows out);
void attend_expanded(const Context& context, HeadRows q, const LatentCache& cache, const PackedMatrix& kv_b,
                     int64_t nope_width, std::span<const AttentionSpan> spans, float scale, HeadRows out);
void run_products(const Context& context, std::span<const Product> products);
}  // namespace reference

// SIMD, on all threads of the context.
namespace fast {
void rms_norm(const Context& context, ConstRows x, const float* weight, float eps, Rows y);
void add_rms_norm(const Context& context, ConstRows delta, Rows residual, const float* weight, float eps, Rows y);
void swiglu(const Context& context, ConstRows gate_up, Rows y);
void embed(const Context& context, const EmbeddingTable& table, std::span<const int32_t> token_ids, Rows y);
void rope_interleaved(const Context& context, const RopeTable& table, std::span<const int32_t> positions, HeadRows x);
void choose_experts(const Context& context, const GateConfig& config, ConstRows logits, const float* bias,
                    int32_t* expert_ids, float* expert_weights);
void router_logits(const Context& context, ConstRows x, ConstRows weight, Rows logits);
void gather_rows(const Context& context, ConstRows x, std::span<const int32_t> token_of_row, Rows y);
void combine_rows(const Context& context, ConstRows x, const ExpertOrder& order, const float* weights, int64_t k,
                  Rows y);
void store_latents(const Context& context, ConstRows latent, std::span<const AttentionSpan> spans,
                   const LatentCache& cache);
void attend_absorbed(const Context& context, HeadRows q, const LatentCache& cache, std::span<const AttentionSpan> spans,
                     float scale, HeadRows out);
void attend_expanded(const Context& context, HeadRows q, const LatentCache& cache, const PackedMatrix& kv_b,
                     int64_t nope_width, std::span<const AttentionSpan> spans, float scale, HeadRows out);
void run_products(const Context& context, std::span<const Product> products);

// The exp of softmax and SwiGLU, for its test: x <= 0.
void exp_non_positive(std::span<const float> x, float* y);

// Rows of so many numbers that are worth waking another thread for.
inline int64_t rows_per_chunk(int64_t width) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(width, 1));
}
}  // namespace fast

// An implementation as a value.
struct Operations {
  decltype(&reference::rms_norm) rms_norm;
  decltype(&reference::add_rms_norm) add_rms_norm;
  decltype(&reference::swiglu) swiglu;
  decltype(&reference::embed) embed;
  decltype(&reference::rope_interleaved) rope_interleaved;
  decltype(&reference::choose_experts) choose_experts;
  decltype(&reference::router_logits) router_logits;
  decltype(&reference::gather_rows) gather_rows;
  decltype(&reference::combine_rows) combine_rows;
  decltype(&reference::store_latents) store_latents;
  decltype(&reference::attend_absorbed) attend_absorbed;
  decltype(&reference::attend_expanded) attend_expanded;
  decltype(&reference::run_products) run_products;
};
const Operations& reference_operations();
const Operations& operations_of(const Context& context);
// What Implementation::kExact computes with from now on; for tests. Not while another thread computes.
void set_exact_operations(const Operations& operations);

// Keys of a query are visited in tiles that begin at multiples of this many tokens, in both implementations.
inline constexpr int64_t kKeyTileTokens = 64;

// Address of the cached row of token `position`.
inline std::byte* cached_row(const LatentCache& cache, std::span<const int32_t> pages, int64_t position) {
  const int64_t row = int64_t{pages[position / cache.page_tokens]} * cache.page_tokens + position % cache.page_tokens;
  return static_cast<std::byte*>(cache.data) + row * cache.row_width() * size_of(cache.dtype);
}

// Addresses of the rows of `count` tokens from `first` on; one division for all of them.
inline void cached_rows(const LatentCache& cache, std::span<const int32_t> pages, int64_t first, int64_t count,
                        const std::byte** rows) {
  const int64_t row_bytes = cache.row_width() * size_of(cache.dtype), page_bytes = cache.page_tokens * row_bytes;
  int64_t page = first / cache.page_tokens, token = first % cache.page_tokens;
  for (int64_t done = 0; done < count; ++page, token = 0) {
    const std::byte* row = static_cast<const std::byte*>(cache.data) + pages[page] * page_bytes + token * row_bytes;
    for (; token < cache.page_tokens && done < count; ++token, row += row_bytes) rows[done++] = row;
  }
}

}  // namespace plait::kernels
