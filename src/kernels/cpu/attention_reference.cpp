#include "kernels/cpu/implementations.h"

namespace plait::kernels::reference {
namespace {

// Keys and values of one head for the tokens of one tile. A key is in two parts: per head (expanded) or latent
// (absorbed), and the rotated part that all heads share.
struct KeyTile {
  ConstRows keys;       // [tokens, width]
  ConstRows rope_keys;  // [tokens, rope_width]
  ConstRows values;     // [tokens, width of out]
};

// What one query has seen so far: out = sum of exp(score - maximum) * value.
struct OnlineSoftmax {
  float maximum = -std::numeric_limits<float>::infinity();
  float sum = 0;
};

float dot(const float* a, const float* b, int64_t width) {
  float sum = 0;
  for (int64_t i = 0; i < width; ++i) sum += a[i] * b[i];
  return sum;
}

void scale_row(float* row, int64_t width, float factor) {
  for (int64_t j = 0; j < width; ++j) row[j] *= factor;
}

// Adds the first `visible` tokens of the tile to what q has seen.
void attend_tile(const float* q, const KeyTile& tile, int64_t visible, float scale, OnlineSoftmax& seen, float* out) {
  float scores[kKeyTileTokens];
  float maximum = seen.maximum;
  for (int64_t j = 0; j < visible; ++j) {
    scores[j] = scale * (dot(q, tile.keys.row(j), tile.keys.cols) +
                         dot(q + tile.keys.cols, tile.rope_keys.row(j), tile.rope_keys.cols));
    maximum = std::max(maximum, scores[j]);
  }
  if (maximum == -std::numeric_limits<float>::infinity()) return;  // nothing has any weight yet

  const float correction = std::exp(seen.maximum - maximum);
  seen.maximum = maximum;
  seen.sum *= correction;
  scale_row(out, tile.values.cols, correction);
  for (int64_t j = 0; j < visible; ++j) {
    const float probability = std::exp(scores[j] - maximum);
    seen.sum += probability;
    for (int64_t c = 0; c < tile.values.cols; ++c) out[c] += probability * tile.values.row(j)[c];
  }
}

void finish(const OnlineSoftmax& seen, float* out, int64_t width) {
  if (seen.sum != 0) scale_row(out, width, 1 / seen.sum);
}

// tile: [count, row_width] of tokens [first, first + count) as float32
void load_tile(const LatentCache& cache, std::span<const int32_t> pages, int64_t first, int64_t count, float* tile) {
  for (int64_t j = 0; j < count; ++j) {
    const std::byte* row = cached_row(cache, pages, first + j);
    for (int64_t c = 0; c < cache.row_width(); ++c)
      *tile++ = cache.dtype == DType::kF32 ? reinterpret_cast<const float*>(row)[c]
                                           : static_cast<float>(reinterpret_cast<const BFloat16*>(row)[c]);
  }
}

// Calls body(first, count) for the tiles of tokens [0, end).
template <typename Body>
void for_each_tile(int64_t end, Body body) {
  for (int64_t first = 0; first < end; first += kKeyTileTokens) body(first, std::min(kKeyTileTokens, end - first));
}

}  // namespace

void store_latents(const Context&, ConstRows latent, std::span<const AttentionSpan> spans, const LatentCache& cache) {
  for (const AttentionSpan& span : spans) {
    for (int64_t i = 0; i < span.row_count; ++i) {
      const float* source = latent.row(span.row_begin + i);
      std::byte* row = cached_row(cache, span.pages, span.position(i));
      if (cache.dtype == DType::kF32)
        std::copy_n(source, latent.cols, reinterpret_cast<float*>(row));
      else
        std::transform(source, source + latent.cols, reinterpret_cast<BFloat16*>(row),
                       [](float value) { return BFloat16(value); });
    }
  }
}

void attend_absorbed(const Context&, HeadRows q, const LatentCache& cache, std::span<const AttentionSpan> spans,
                     float scale, HeadRows out) {
  std::vector<float> latents(kKeyTileTokens * cache.row_width());
  const ConstRows rows(latents.data(), kKeyTileTokens, cache.row_width());
  const KeyTile tile{.keys = rows.slice_cols(0, cache.latent_width),
                     .rope_keys = rows.slice_cols(cache.latent_width, cache.rope_width),
                     .values = rows.slice_cols(0, cache.latent_width)};
  for (const AttentionSpan& span : spans) {
    for (int64_t i = 0; i < span.row_count; ++i) {
      const int64_t token = span.row_begin + i;
      std::vector<OnlineSoftmax> seen(q.heads);
      for (int64_t h = 0; h < q.heads; ++h) std::fill_n(out.at(token, h), out.width, 0.0f);
      for_each_tile(span.position(i) + 1, [&](int64_t first, int64_t count) {
        load_tile(cache, span.pages, first, count, latents.data());
        for (int64_t h = 0; h < q.heads; ++h)
          attend_tile(q.at(token, h), tile, count, scale, seen[h], out.at(token, h));
      });
      for (int64_t h = 0; h < q.heads; ++h) finish(seen[h], out.at(token, h), out.width);
    }
  }
}

void attend_expanded(const Context& context, HeadRows q, const LatentCache& cache, const PackedMatrix& kv_b,
                     int64_t nope_width, std::span<const AttentionSpan> spans, float scale, HeadRows out) {
  std::vector<float> latents(kKeyTileTokens * cache.row_width());
  std::vector<float> expanded(kKeyTileTokens * kv_b.out_features());  // [tokens, heads, nope + v]
  const int64_t head_width = nope_width + out.width;
  for (const AttentionSpan& span : spans) {
    if (span.row_count == 0) continue;
    std::vector<OnlineSoftmax> seen(span.row_count * q.heads);
    for (int64_t i = 0; i < span.row_count; ++i)
      for (int64_t h = 0; h < q.heads; ++h) std::fill_n(out.at(span.row_begin + i, h), out.width, 0.0f);

    for_each_tile(span.length(), [&](int64_t first, int64_t count) {
      load_tile(cache, span.pages, first, count, latents.data());
      const ConstRows rows(latents.data(), count, cache.row_width());
      const Rows key_values(expanded.data(), count, kv_b.out_features());
      linear(context, rows.slice_cols(0, cache.latent_width), kv_b, key_values);
      for (int64_t h = 0; h < q.heads; ++h) {
        const KeyTile tile{.keys = key_values.slice_cols(h * head_width, nope_width),
                           .rope_keys = rows.slice_cols(cache.latent_width, cache.rope_width),
                           .values = key_values.slice_cols(h * head_width + nope_width, out.width)};
        for (int64_t i = 0; i < span.row_count; ++i) {
          const int64_t visible = std::clamp<int64_t>(span.position(i) + 1 - first, 0, count);
          const int64_t token = span.row_begin + i;
          attend_tile(q.at(token, h), tile, visible, scale, seen[i * q.heads + h], out.at(token, h));
        }
      }
    });
    for (int64_t i = 0; i < span.row_count; ++i)
      for (int64_t h = 0; h < q.heads; ++h) finish(seen[i * q.heads + h], out.at(span.row_begin + i, h), out.width);
  }
}

}  // namespace plait::kernels::reference
