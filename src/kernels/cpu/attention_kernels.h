// The inner loops of attention over one tile of keys, one table per instruction set.
//
// A tile holds up to kKeyTileTokens tokens. "Rows" below are (query, head) pairs; every row's arithmetic is a function
// of its own numbers and of how many tokens it sees, never of the rows beside it. Strides are in floats and multiples
// of kPad, so that vectors of any size may run over the end of a row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels/cpu/implementations.h"

namespace plait::kernels {

inline constexpr int64_t kPad = 16;  // floats; one cache line, and the widest vector

// Workspace slots of attention. linear(), which it calls, uses those below.
inline constexpr int kSlotAttentionScratch = 24;
inline constexpr int kSlotPartials = 25;
inline constexpr int kSlotLatents = 26;
inline constexpr int kSlotExpanded = 27;
inline constexpr int kSlotTiles = 28;
inline constexpr int kSlotSoftmax = 29;
inline constexpr int kSlotQueries = 30;

// Floats between rows of a buffer. An odd number of cache lines: power-of-two strides map all rows to a few cache sets.
inline int64_t padded_stride(int64_t width) {
  return ((width + kPad - 1) / kPad | 1) * kPad;
}
inline int64_t padded_width(int64_t width) {
  return (width + kPad - 1) / kPad * kPad;
}
// Floats between the keys of an absorbed tile in every published model: kernels have it as a constant.
inline constexpr int64_t kUsualKeyStride = 37 * kPad;  // padded_stride(512 + 64)

// Memory that is fetched into the second-level cache while something else is computed: line after line, spread over the
// work, because a core can wait for a dozen lines only.
struct Prefetch {
  const std::byte* const* rows = nullptr;  // [row_count]
  int64_t row_count = 0;
  int64_t row_bytes = 0;
  int64_t interval_mask = 0;  // one line every so many steps of a loop: a power of two, minus one
  // Where it stands.
  int64_t row = 0;
  int64_t offset_bytes = 0;
  void next_line() {
    if (row == row_count) return;
    __builtin_prefetch(rows[row] + offset_bytes, 0, 2);
    offset_bytes += 64;
    if (offset_bytes >= row_bytes) {
      offset_bytes = 0;
      ++row;
    }
  }
};

// scores[token, row] = sum over width of q[row] * keys[token], lanes along the width: for few rows. Both sides are zero
// between the true width and `width`, a multiple of kPad.
struct DotCall {
  const float* q = nullptr;  // [rows, width]
  int64_t q_stride = 0;
  int64_t rows = 0;
  const float* keys = nullptr;  // [tokens, width]
  int64_t key_stride = 0;
  int64_t tokens = 0;
  int64_t width = 0;
  float* scores = nullptr;  // [tokens, score_stride]
  int64_t score_stride = 0;
  Prefetch* prefetch = nullptr;
};

// scores -> exp(score - maximum), with running maximum and sum of each row; `values`, the sum of values so far, is
// rescaled where the maximum rises. A maximum of -infinity means that nothing has had any weight so far.
struct SoftmaxCall {
  float* scores = nullptr;  // in place; by rows: [rows, kKeyTileTokens], by columns: [tokens, score_stride]
  int64_t score_stride = 0;
  int64_t rows = 0;
  const int32_t* visible = nullptr;  // by rows: [rows] tokens that each row sees; the scores of others are ignored
  int64_t tokens = 0;                // by columns: tokens that all rows see
  float* maximum = nullptr;          // [rows up to a kPad]
  float* sum = nullptr;              // [rows up to a kPad]
  float* values = nullptr;           // [rows, value_width]
  int64_t value_stride = 0;
  int64_t value_width = 0;
};

// c[row] (+)= sum over i of a[row, i] * b[i], lanes along the columns, a multiple of kPad. i runs over [0, depth), or
// over [0, visible[row]) where `visible`, which must not decrease, is given.
struct ProductCall {
  const float* a = nullptr;  // [rows, depth], or [depth, rows] if transposed
  int64_t a_stride = 0;
  bool a_transposed = false;
  int64_t rows = 0;
  const float* b = nullptr;  // [depth, columns]
  int64_t b_stride = 0;
  int64_t depth = 0;
  const int32_t* visible = nullptr;
  float* c = nullptr;  // [rows, columns]
  int64_t c_stride = 0;
  int64_t columns = 0;
  bool accumulate = false;
  Prefetch* prefetch = nullptr;  // if a_transposed: always; not with `visible`
};

struct AttentionKernels {
  std::string_view name;  // of the instruction set
  int64_t lanes = 0;      // of a vector
  void (*load_row)(const std::byte* row, DType dtype, int64_t width, float* out, int64_t padded_width);
  void (*store_row)(const float* row, int64_t width, DType dtype, std::byte* out);
  void (*dot)(const DotCall& call);
  void (*softmax_rows)(const SoftmaxCall& call);
  void (*softmax_columns)(const SoftmaxCall& call);
  void (*product)(const ProductCall& call);
  // Merges `other` into what was seen so far: two stretches of keys, each with a maximum of its own.
  void (*merge)(float other_maximum, float other_sum, const float* other, float& maximum, float& sum, float* values,
                int64_t columns);
  // out[0, width) = values / sum; zeros if nothing had any weight. out has no padding.
  void (*finish)(const float* values, float sum, float* out, int64_t width);
};

const AttentionKernels& attention_kernels();

}  // namespace plait::kernels
