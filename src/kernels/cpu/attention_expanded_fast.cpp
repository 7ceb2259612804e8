// Expanded form: the cached latents of a stretch of tokens become keys and values of every head, which many queries
// then share. Stretches are a number of whole tiles; how many does not matter to the result.
#include "kernels/cpu/attention_kernels.h"

namespace plait::kernels::fast {
namespace {

constexpr int64_t kMaxQueryBlock = 128;               // rows of one task: enough to pay for reading the tiles
constexpr int64_t kMinQueryBlock = 16;                // where threads would have nothing to do otherwise
constexpr int64_t kTokensAtOnce = 16;                 // of the conversion to float32
constexpr int64_t kStretchFloats = int64_t{4} << 20;  // expanded keys and values that are alive at once

class ExpandedAttention {
 public:
  ExpandedAttention(const Context& context, HeadRows q, const LatentCache& cache, const PackedMatrix& kv_b,
                    int64_t nope_width, float scale, HeadRows out)
      : context_(context),
        kernels_(attention_kernels()),
        q_(q),
        cache_(cache),
        kv_b_(kv_b),
        nope_width_(nope_width),
        scale_(scale),
        out_(out),
        value_stride_(padded_stride(out.width)),
        query_stride_(padded_stride(q.width)) {
    const int64_t tiles = kStretchFloats / (kKeyTileTokens * kv_b.out_features());
    stretch_tokens_ = std::clamp<int64_t>(tiles, 1, 16) * kKeyTileTokens;
  }

  void run(const AttentionSpan& span) {
    const int64_t length = span.length();
    Workspace& workspace = *context_.workspace;
    const int64_t stretch = std::min(stretch_tokens_, (length + kKeyTileTokens - 1) / kKeyTileTokens * kKeyTileTokens);
    latents_ = workspace.get_array<float>(kSlotLatents, stretch * cache_.row_width());
    expanded_ = workspace.get_array<float>(kSlotExpanded, stretch * kv_b_.out_features());
    tiles_ = workspace.get_array<float>(kSlotTiles, stretch / kKeyTileTokens * q_.heads * tile_floats());
    maximum_ = workspace.get_array<float>(kSlotSoftmax, 2 * span.row_count * q_.heads);
    sum_ = maximum_ + span.row_count * q_.heads;
    scratch_ = workspace.get_array<float>(kSlotAttentionScratch, context_.pool->size() * scratch_floats());
    std::fill_n(maximum_, span.row_count * q_.heads, -std::numeric_limits<float>::infinity());
    std::fill_n(sum_, span.row_count * q_.heads, 0.0f);

    const int64_t query_block = query_block_for(span.row_count);
    const int64_t blocks = (span.row_count + query_block - 1) / query_block;
    for (int64_t first = 0; first < length; first += stretch) {
      const int64_t tokens = std::min(stretch, length - first);
      expand(span, first, tokens);
      // Late blocks see most; they go first, so that the loop ends evenly.
      context_.pool->parallel_for(blocks * q_.heads, 1, [&](int64_t begin, int64_t end, int member) {
        for (int64_t i = begin; i < end; ++i)
          run_block(span, (blocks - 1 - i / q_.heads) * query_block, query_block, i % q_.heads, first, tokens,
                    scratch_ + member * scratch_floats());
      });
    }
  }

 private:
  // Keys and values of one head and tile.
  struct Tile {
    float* keys;    // [q.width, kKeyStride]: transposed, lanes are tokens
    float* values;  // [kKeyTileTokens, value_stride]
  };
  static constexpr int64_t kKeyStride = kKeyTileTokens + kPad;
  int64_t tile_floats() const { return q_.width * kKeyStride + kKeyTileTokens * value_stride_; }
  Tile tile(int64_t index, int64_t head) const {
    float* begin = tiles_ + (index * q_.heads + head) * tile_floats();
    return {begin, begin + q_.width * kKeyStride};
  }
  int64_t query_block_for(int64_t rows) const {
    int64_t block = kMaxQueryBlock;
    while (block > kMinQueryBlock && (rows + block - 1) / block * q_.heads < 4 * context_.pool->size()) block /= 2;
    return block;
  }
  int64_t scratch_floats() const { return kMaxQueryBlock * (query_stride_ + value_stride_ + kKeyTileTokens); }

  // Fills the tiles of tokens [first, first + tokens).
  void expand(const AttentionSpan& span, int64_t first, int64_t tokens) {
    const int64_t row_width = cache_.row_width();
    context_.pool->parallel_for(tokens, kTokensAtOnce, [&](int64_t begin, int64_t end, int) {
      const std::byte* rows[kTokensAtOnce];
      cached_rows(cache_, span.pages, first + begin, end - begin, rows);
      for (int64_t j = begin; j < end; ++j)
        kernels_.load_row(rows[j - begin], cache_.dtype, row_width, latents_ + j * row_width, row_width);
    });
    linear(context_, ConstRows(latents_, tokens, cache_.latent_width, row_width), kv_b_,
           Rows(expanded_, tokens, kv_b_.out_features()));
    const int64_t tiles = (tokens + kKeyTileTokens - 1) / kKeyTileTokens;
    context_.pool->parallel_for(tiles * q_.heads, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) fill_tile(i / q_.heads, i % q_.heads, tokens);
    });
  }

  void fill_tile(int64_t index, int64_t head, int64_t stretch_tokens) {
    const int64_t first = index * kKeyTileTokens, tokens = std::min(kKeyTileTokens, stretch_tokens - first);
    const int64_t head_width = nope_width_ + out_.width;
    const Tile to = tile(index, head);
    const float* expanded = expanded_ + first * kv_b_.out_features() + head * head_width;
    const float* rope_keys = latents_ + first * cache_.row_width() + cache_.latent_width;
    transpose(expanded, kv_b_.out_features(), tokens, nope_width_, to.keys);
    transpose(rope_keys, cache_.row_width(), tokens, cache_.rope_width, to.keys + nope_width_ * kKeyStride);
    for (int64_t j = 0; j < tokens; ++j) {
      float* values = to.values + j * value_stride_;
      std::copy_n(expanded + j * kv_b_.out_features() + nope_width_, out_.width, values);
      std::fill(values + out_.width, values + value_stride_, 0.0f);
    }
  }

  // to[column, row] = from[row, column]; rows up to kKeyTileTokens are zero. Through a small buffer, because rows that
  // lie a power of two apart would evict each other from the cache.
  static void transpose(const float* from, int64_t stride, int64_t rows, int64_t columns, float* to) {
    alignas(64) float block[kKeyTileTokens * kPad] = {};
    for (int64_t column = 0; column < columns; column += kPad) {
      const int64_t width = std::min(kPad, columns - column);
      for (int64_t row = 0; row < rows; ++row) std::copy_n(from + row * stride + column, width, block + row * kPad);
      for (int64_t c = 0; c < width; ++c)
        for (int64_t row = 0; row < kKeyTileTokens; ++row) to[(column + c) * kKeyStride + row] = block[row * kPad + c];
    }
  }

  // One head of `query_block` rows from `row` on over the tiles of tokens [first, first + tokens).
  void run_block(const AttentionSpan& span, int64_t row, int64_t query_block, int64_t head, int64_t first,
                 int64_t tokens, float* scratch) const {
    const int64_t rows = std::min(query_block, span.row_count - row);
    const auto position = [&](int64_t i) { return span.position(row + i); };  // of the block's row i
    // The first of the block's rows that sees `token`.
    const auto first_to_see = [&](int64_t token) {
      const int64_t missing = std::max<int64_t>(token - position(0), 0);
      return (missing + span.position_step - 1) / span.position_step;
    };
    if (position(rows - 1) < first) return;
    float* queries = scratch;                                  // [rows, query_stride]
    float* values = queries + kMaxQueryBlock * query_stride_;  // [rows, value_stride]
    float* scores = values + kMaxQueryBlock * value_stride_;   // [rows, kKeyTileTokens]
    for (int64_t i = 0; i < rows; ++i) {
      const float* q = q_.at(span.row_begin + row + i, head);
      std::transform(q, q + q_.width, queries + i * query_stride_, [&](float value) { return value * scale_; });
      float* seen = values + i * value_stride_;
      std::fill_n(seen, value_stride_, 0.0f);
      if (first > 0) std::copy_n(out_.at(span.row_begin + row + i, head), out_.width, seen);
    }
    float* maximum = maximum_ + head * span.row_count + row;
    float* sum = sum_ + head * span.row_count + row;

    for (int64_t begin = first; begin < std::min(first + tokens, position(rows - 1) + 1); begin += kKeyTileTokens) {
      const Tile keys = tile((begin - first) / kKeyTileTokens, head);
      const int64_t end = std::min(begin + kKeyTileTokens, first + tokens);
      const int64_t blind = first_to_see(begin);  // rows before it see nothing of this tile
      int32_t visible[kMaxQueryBlock];
      for (int64_t i = blind; i < rows; ++i) visible[i] = static_cast<int32_t>(std::min(position(i) + 1, end) - begin);
      kernels_.product({.a = queries + blind * query_stride_,
                        .a_stride = query_stride_,
                        .rows = rows - blind,
                        .b = keys.keys,
                        .b_stride = kKeyStride,
                        .depth = q_.width,
                        .c = scores,
                        .c_stride = kKeyTileTokens,
                        .columns = kKeyTileTokens});
      kernels_.softmax_rows({.scores = scores,
                             .score_stride = kKeyTileTokens,
                             .rows = rows - blind,
                             .visible = visible + blind,
                             .maximum = maximum + blind,
                             .sum = sum + blind,
                             .values = values + blind * value_stride_,
                             .value_stride = value_stride_,
                             .value_width = padded_width(out_.width)});
      kernels_.product({.a = scores,
                        .a_stride = kKeyTileTokens,
                        .rows = rows - blind,
                        .b = keys.values,
                        .b_stride = value_stride_,
                        .depth = kKeyTileTokens,
                        .visible = visible + blind,
                        .c = values + blind * value_stride_,
                        .c_stride = value_stride_,
                        .columns = padded_width(out_.width),
                        .accumulate = true});
    }
    for (int64_t i = first_to_see(first); i < rows; ++i) {  // earlier rows were finished before
      float* out = out_.at(span.row_begin + row + i, head);
      const float* seen = values + i * value_stride_;
      if (position(i) < first + tokens)
        kernels_.finish(seen, sum[i], out, out_.width);
      else
        std::copy_n(seen, out_.width, out);
    }
  }

  const Context& context_;
  const AttentionKernels& kernels_;
  const HeadRows q_;
  const LatentCache& cache_;
  const PackedMatrix& kv_b_;
  const int64_t nope_width_;
  const float scale_;
  const HeadRows out_;  // also where unfinished sums wait between stretches
  const int64_t value_stride_, query_stride_;
  int64_t stretch_tokens_ = 0;
  float* latents_ = nullptr;   // [tokens, row_width]
  float* expanded_ = nullptr;  // [tokens, heads, nope + v]
  float* tiles_ = nullptr;     // [tiles, heads, tile_floats]
  float* maximum_ = nullptr;   // [heads, rows]
  float* sum_ = nullptr;       // [heads, rows]
  float* scratch_ = nullptr;   // [threads, scratch_floats]
};

}  // namespace

void attend_expanded(const Context& context, HeadRows q, const LatentCache& cache, const PackedMatrix& kv_b,
                     int64_t nope_width, std::span<const AttentionSpan> spans, float scale, HeadRows out) {
  ExpandedAttention attention(context, q, cache, kv_b, nope_width, scale, out);
  for (const AttentionSpan& span : spans)
    if (span.row_count > 0) attention.run(span);
}

}  // namespace plait::kernels::fast
