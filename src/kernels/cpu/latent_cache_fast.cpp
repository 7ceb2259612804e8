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
                          cached_row(cache, span.pages, span.position(i)));
    });
  }
}

void embed(const Context& context, const EmbeddingTable& table, std::span<const int32_t> token_ids, Rows y) {
  const AttentionKernels& kernels = attention_kernels();
  const int64_t row_bytes = y.cols * size_of(table.dtype);
  context.pool->parallel_for(y.rows, rows_per_chunk(y.cols), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      if (!table.holds(token_ids[i])) {
        std::fill_n(y.row(i), y.cols, 0.0f);
        continue;
      }
      const auto* row = static_cast<const std::byte*>(table.data) + (token_ids[i] - table.first_id) * row_bytes;
      kernels.load_row(row, table.dtype, y.cols, y.row(i), y.cols);
    }
  });
}

}  // namespace plait::kernels::fast
