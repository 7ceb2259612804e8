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

// Floats between rows of a buffer. An odd number of cache lines: power-of-two strides map all rows to a few cache sets.
inline int64_t padded_stride(int64_t width) {
  return ((width + kPad - 1) / kPad | 1) * kPad;
}

// scores[row, token] = sum over width of q[row] * keys[token], lanes along the width. Both sides are zero between the
// true width and `width`, a multiple of kPad. Writes whole groups of 4 tokens.
struct DotCall {
  const float* q = nullptr;  // [rows, width]
  int64_t q_stride = 0;
  int64_t rows = 0;
  const float* keys = nullptr;  // [tokens, width]
  int64_t key_stride = 0;
  int64_t tokens = 0;
  int64_t width = 0;
  float* scores = nullptr;  // [rows, kKeyTileTokens]
};

// scores -> exp(score - maximum), with running maximum and sum of each row; `sums_of_values` is rescaled where the
// maximum rises. A maximum of -infinity means that nothing has had any weight so far.
struct SoftmaxCall {
  float* scores = nullptr;  // [rows, kKeyTileTokens], in place
  int64_t rows = 0;
  const int32_t* visible = nullptr;  // [rows] tokens that each row sees; the scores of the others are ignored
  float* maximum = nullptr;          // [rows]
  float* sum = nullptr;              // [rows]
  float* sums_of_values = nullptr;   // [rows, columns]
  int64_t stride = 0;
  int64_t columns = 0;
};

// c[row] (+)= sum over i of a[row, i] * b[i], lanes along the columns, a multiple of kPad. i runs over [0, depth), or
// over [0, visible[row]) where `visible`, which must not decrease, is given.
struct ProductCall {
  const float* a = nullptr;  // [rows, depth]
  int64_t a_stride = 0;
  int64_t rows = 0;
  const float* b = nullptr;  // [depth, columns]
  int64_t b_stride = 0;
  int64_t depth = 0;
  const int32_t* visible = nullptr;
  float* c = nullptr;  // [rows, columns]
  int64_t c_stride = 0;
  int64_t columns = 0;
  bool accumulate = false;
  // Memory to fetch meanwhile: `prefetch_bytes` from each of these addresses, of which there are `depth`.
  const std::byte* const* prefetch = nullptr;
  int64_t prefetch_bytes = 0;
};

struct AttentionKernels {
  std::string_view name;  // of the instruction set
  void (*load_row)(const std::byte* row, DType dtype, int64_t width, float* out, int64_t padded_width);
  void (*store_row)(const float* row, int64_t width, DType dtype, std::byte* out);
  void (*dot)(const DotCall& call);
  void (*softmax)(const SoftmaxCall& call);
  void (*product)(const ProductCall& call);
  // Merges `other` into what was seen so far: two stretches of keys, each with a maximum of its own.
  void (*merge)(float other_maximum, float other_sum, const float* other, float& maximum, float& sum, float* values,
                int64_t columns);
  // out[0, width) = values / sum; zeros if nothing had any weight. out has no padding.
  void (*finish)(const float* values, float sum, float* out, int64_t width);
};

const AttentionKernels& attention_kernels();

}  // namespace plait::kernels
