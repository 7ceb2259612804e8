// A paged cache with scattered pages, steps that mix sequences, and attention by its definition in double.
#pragma once

#include <algorithm>
#include <numeric>

#include "kernels/attention.h"
#include "tests/kernels/implementations.h"

namespace plait::kernels {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct AttentionShape {
  int64_t heads = 3;
  int64_t latent = 40;  // kv_lora_rank
  int64_t rope = 8;
  int64_t nope = 12;
  int64_t value = 20;
  float scale = 0.3f;
  int64_t row_width() const { return latent + rope; }
};

// Every page is NaN until something is stored in it, and every sequence gets pages all over the pool.
class PagedCache {
 public:
  PagedCache(const AttentionShape& shape, DType dtype, int64_t page_tokens, int64_t pages, uint32_t seed)
      : data_(static_cast<size_t>(pages * page_tokens * shape.row_width() * size_of(dtype))) {
    std::memset(data_.data(), 0xff, data_.size_bytes());  // NaN in both formats
    view_ = {data_.data(), dtype, page_tokens, shape.latent, shape.rope};
    free_.resize(pages);
    std::iota(free_.begin(), free_.end(), 0);
    std::shuffle(free_.begin(), free_.end(), std::mt19937(seed));
  }
  std::vector<int32_t> allocate(int64_t tokens) {
    std::vector<int32_t> pages;
    for (int64_t covered = 0; covered < tokens; covered += view_.page_tokens) {
      pages.push_back(free_.back());
      free_.pop_back();
    }
    return pages;
  }
  const LatentCache& view() const { return view_; }

 private:
  Buffer data_;
  LatentCache view_;
  std::vector<int32_t> free_;
};

// One sequence: what its tokens bring along, and where they are cached.
struct Sequence {
  std::vector<float> latents;  // [tokens, row_width]
  std::vector<float> queries;  // [tokens, heads, query width]
  std::vector<int32_t> pages;
  int64_t tokens = 0;
};

inline std::vector<float> packed_kv_b(const AttentionShape& shape, uint32_t seed) {
  return random_values(shape.heads * (shape.nope + shape.value) * shape.latent, seed, 0.2f);
}

inline PackedMatrix pack(Implementation implementation, const std::vector<float>& values, int64_t rows,
                         int64_t columns) {
  PackedMatrix matrix(implementation, WeightFormat::kF32, rows, columns);
  const WeightSource source{DType::kF32, rows, columns, reinterpret_cast<const std::byte*>(values.data())};
  EXPECT_TRUE(matrix.pack_rows(0, source).has_value());
  return matrix;
}

// The two forms behind one call. Queries are [nope + rope] wide in the expanded form, [latent + rope] in the absorbed.
enum class Form { kAbsorbed, kExpanded };
struct Attention {
  AttentionShape shape;
  Form form = Form::kAbsorbed;
  const PackedMatrix* kv_b = nullptr;  // expanded only
  int64_t query_width() const { return (form == Form::kAbsorbed ? shape.latent : shape.nope) + shape.rope; }
  int64_t out_width() const { return form == Form::kAbsorbed ? shape.latent : shape.value; }

  void operator()(const Context& context, float* q, const LatentCache& cache, std::span<const AttentionSpan> spans,
                  int64_t tokens, float* out) const {
    const HeadRows q_rows{q, tokens, shape.heads, query_width(), shape.heads * query_width(), query_width()};
    const HeadRows out_rows{out, tokens, shape.heads, out_width(), shape.heads * out_width(), out_width()};
    if (form == Form::kAbsorbed)
      attend_absorbed(context, q_rows, cache, spans, shape.scale, out_rows);
    else
      attend_expanded(context, q_rows, cache, *kv_b, shape.nope, spans, shape.scale, out_rows);
  }
};

inline Sequence make_sequence(const Attention& attention, int64_t tokens, uint32_t seed) {
  return {.latents = random_values(tokens * attention.shape.row_width(), seed),
          .queries = random_values(tokens * attention.shape.heads * attention.query_width(), seed + 1000),
          .tokens = tokens};
}

// Some rows of a sequence, for one step.
struct Piece {
  const Sequence* sequence;
  int64_t first;
  int64_t count;
};

// Runs one step of these pieces in this order, with an unused row between them. Returns the rows of each piece.
inline std::vector<std::vector<float>> run_step(const Context& context, const Attention& attention,
                                                const LatentCache& cache, const std::vector<Piece>& pieces) {
  const int64_t row_width = attention.shape.row_width();
  const int64_t q_width = attention.shape.heads * attention.query_width();
  const int64_t out_width = attention.shape.heads * attention.out_width();
  std::vector<AttentionSpan> spans;
  int64_t rows = 1;
  for (const Piece& piece : pieces) {
    spans.push_back({piece.sequence->pages, piece.first, rows, piece.count});
    rows += piece.count + 1;
  }
  std::vector<float> latents(rows * row_width, kNaN), q(rows * q_width, kNaN), out(rows * out_width, kNaN);
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto& [sequence, first, count] = pieces[i];
    std::copy_n(&sequence->latents[first * row_width], count * row_width, &latents[spans[i].row_begin * row_width]);
    std::copy_n(&sequence->queries[first * q_width], count * q_width, &q[spans[i].row_begin * q_width]);
  }
  store_latents(context, ConstRows(latents.data(), rows, row_width), spans, cache);
  attention(context, q.data(), cache, spans, rows, out.data());

  std::vector<std::vector<float>> results;
  int64_t unused = 0;
  for (const AttentionSpan& span : spans) {
    for (; unused < span.row_begin; ++unused)
      for (int64_t i = 0; i < out_width; ++i) EXPECT_TRUE(std::isnan(out[unused * out_width + i]));
    const auto begin = out.begin() + span.row_begin * out_width;
    results.emplace_back(begin, begin + span.row_count * out_width);
    unused = span.row_begin + span.row_count;
  }
  return results;
}

// What the cache gives back of a stored number.
inline double stored(float value, DType dtype) {
  return dtype == DType::kF32 ? value : static_cast<float>(BFloat16(value));
}

// Attention by its definition, in double: result of the row at `position`, [heads, out width].
inline std::vector<double> attend_by_definition(const Attention& attention, const std::vector<float>& kv_b,
                                                const Sequence& sequence, DType dtype, int64_t position) {
  const AttentionShape& s = attention.shape;
  std::vector<double> out;
  for (int64_t h = 0; h < s.heads; ++h) {
    const float* q = &sequence.queries[(position * s.heads + h) * attention.query_width()];
    const float* w = kv_b.data() + h * (s.nope + s.value) * s.latent;
    std::vector<double> scores, values;
    for (int64_t j = 0; j <= position; ++j) {
      std::vector<double> row(s.row_width());
      for (int64_t c = 0; c < s.row_width(); ++c) row[c] = stored(sequence.latents[j * s.row_width() + c], dtype);
      std::vector<double> key(row), value(row.begin(), row.begin() + s.latent);
      if (attention.form == Form::kExpanded) {
        key.assign(s.nope, 0);
        value.assign(s.value, 0);
        for (int64_t i = 0; i < s.nope + s.value; ++i) {
          double& element = i < s.nope ? key[i] : value[i - s.nope];
          for (int64_t c = 0; c < s.latent; ++c) element += row[c] * w[i * s.latent + c];
        }
        key.insert(key.end(), row.begin() + s.latent, row.end());
      }
      scores.push_back(s.scale * std::inner_product(key.begin(), key.end(), q, 0.0));
      values.insert(values.end(), value.begin(), value.end());
    }
    const double maximum = *std::ranges::max_element(scores);
    double sum = 0;
    for (double& score : scores) sum += score = std::exp(score - maximum);
    for (int64_t c = 0; c < attention.out_width(); ++c) {
      double element = 0;
      for (int64_t j = 0; j <= position; ++j) element += scores[j] / sum * values[j * attention.out_width() + c];
      out.push_back(element);
    }
  }
  return out;
}

}  // namespace plait::kernels
