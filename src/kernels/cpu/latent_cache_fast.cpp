// Writing rows to the KV cache, and reading embeddings: rows copied with a change of type.
#include "kernels/cpu/attention_kernels.h"

namespace plait::kernels::fast {

void store_latents(const Context& context, ConstRows latent, std::span<const AttentionSpan> spans,
                   const LatentCache& cache) {
  const AttentionKernels& kernels = attention_kernels();
  for (const AttentionSpan& span : spans) {
    context.pool->parallel_for(span.row_count, rows_per_chunk(latent.cols), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i)
        kernels.store_row(latent.row(span.row_begin + i), latent.cols, cache.dtype,
                          cached_row(cache, span.pages, span.first_position + i));
    });
  }
}

void embed(const Context& context, const void* table, DType table_dtype, std::span<const int32_t> token_ids, Rows y) {
  const AttentionKernels& kernels = attention_kernels();
  const int64_t row_bytes = y.cols * size_of(table_dtype);
  context.pool->parallel_for(y.rows, rows_per_chunk(y.cols), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i)
      kernels.load_row(static_cast<const std::byte*>(table) + token_ids[i] * row_bytes, table_dtype, y.cols, y.row(i),
                       y.cols);
  });
}

}  // namespace plait::kernels::fast
