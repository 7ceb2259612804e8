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

// scores -> exp(score - maximum), with running maximum and sum of each row; `values`, the sum of values so far, is
// rescaled where the maximum rises. A maximum of -infinity means that nothing has had any weight so far.
struct SoftmaxCall {
  float* scores = nullptr;  // [rows, kKeyTileTokens], in place
  int64_t score_stride = 0;
  int64_t rows = 0;
  const int32_t* visible = nullptr;  // [rows] tokens that each row sees; the scores of others are ignored
  float* maximum = nullptr;          // [rows]
  float* sum = nullptr;              // [rows]
  float* values = nullptr;           // [rows, value_width]
  int64_t value_stride = 0;
  int64_t value_width = 0;
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
};

struct AttentionKernels {
  std::string_view name;  // of the instruction set
  void (*load_row)(const std::byte* row, DType dtype, int64_t width, float* out, int64_t padded_width);
  void (*store_row)(const float* row, int64_t width, DType dtype, std::byte* out);
  void (*softmax_rows)(const SoftmaxCall& call);
  void (*product)(const ProductCall& call);
  // out[0, width) = values / sum; zeros if nothing had any weight. out has no padding.
  void (*finish)(const float* values, float sum, float* out, int64_t width);
};

const AttentionKernels& attention_kernels();

// -- Absorbed form --

inline constexpr int64_t kMaxTileHeads = 16;

// One tile of keys, which are values too, and a group of heads. Keys are in *split order*: of every 2 * lanes numbers
// first the even ones, then the odd ones, because that is how a vector of words, each two BF16 numbers, comes apart.
struct AbsorbedTile {
  // [kKeyTileTokens], of key_width numbers; from `tokens` on they repeat any of them.
  const std::byte* const* rows = nullptr;
  const std::byte* const* next_rows = nullptr;  // [kKeyTileTokens]: fetched to the second-level cache meanwhile
  DType dtype = DType::kBF16;                   // of the rows
  int64_t tokens = 0;
  int64_t heads = 0;        // up to kMaxTileHeads
  int64_t key_width = 0;    // a multiple of 2 * lanes
  int64_t value_width = 0;  // a multiple of 2 * lanes, at most key_width
  // [heads / lanes, key_width / 4, 4, lanes / 4, 4]: number 4 k + i of head h at [h / lanes, k, h % 4, h % lanes / 4,
  // i]. Scaled, zeros where there is no head.
  const float* queries = nullptr;
  float* values = nullptr;  // [value_width / (2 * lanes), value_stride], in it [heads, 2 * lanes]: sums so far
  int64_t value_stride = 0;
  float* maximum = nullptr;  // [kMaxTileHeads]
  float* sum = nullptr;      // [kMaxTileHeads]
};

// What one head has seen.
struct AbsorbedSum {
  float* values = nullptr;  // as in AbsorbedTile, from this head on
  int64_t value_stride = 0;
  float* maximum = nullptr;
  float* sum = nullptr;
};

struct AbsorbedKernels {
  int64_t lanes = 0;  // of a vector
  // to: where AbsorbedTile's queries have number 0 of this head.
  void (*pack_query)(const float* query, int64_t width, float scale, float* to);
  void (*attend)(const AbsorbedTile& tile);
  // Merges `other` into what was seen so far: two stretches of keys, each with a maximum of its own.
  void (*merge)(const AbsorbedSum& other, const AbsorbedSum& seen, int64_t width);
  // out[0, width) = values / sum in natural order; zeros if nothing had any weight. out has no padding.
  void (*finish)(const AbsorbedSum& seen, float* out, int64_t width);
};

const AbsorbedKernels& absorbed_kernels();

}  // namespace plait::kernels
