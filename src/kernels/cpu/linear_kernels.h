// The innermost loops of the fast products, one table per instruction set.
//
// One vector of a kernel holds the 16 outputs of a panel. Every result is a single chain of fused multiply-adds in
// ascending order of k, whichever kernel of a table computes it: that is how a row stays independent of its company.
// For kF8Block the chain restarts from zero at every 128 inputs, and sums += chain * scale.
//
// x is packed in tiles of up to `rows` rows: [k / 16w][row][16] words of 4 bytes. A word is one float32 (w = 1) or two
// bfloat16 (w = 2), see `inputs_per_word`. Inputs beyond the last are zero up to the padding of the panels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/linear.h"

namespace plait::kernels {

constexpr int kMaxTileRows = 16;
constexpr int kFormats = 3;

// y[rows, outputs] = x W^T over all inputs, straight from stored panels.
struct DirectCall {
  const void* x = nullptr;             // one packed tile
  const std::byte* weights = nullptr;  // first panel
  int64_t panel_bytes = 0;
  int64_t padded_in = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
  int64_t outputs = 0;  // valid ones from the first panel on; the last panel may have fewer than 16
};
using DirectKernel = void (*)(const DirectCall& call);

// sums += x W^T over a stretch of inputs, from decoded panels: [word of k][16 outputs] words.
struct BlockedCall {
  const uint32_t* x = nullptr;  // the tile at the first input of the stretch
  const std::byte* weights = nullptr;
  int64_t weight_stride_bytes = 0;  // between panels
  int64_t words = 0;                // of k, a multiple of 16
  const float* scales = nullptr;    // [panel][16] or none: sums += chain * scale
  int64_t scale_stride = 0;
  float* sums = nullptr;    // [panel][row][16]
  int64_t sums_stride = 0;  // floats between panels
};
using BlockedKernel = void (*)(const BlockedCall& call);

struct LinearKernels {
  std::string_view name;
  int64_t inputs_per_word = 1;
  int64_t max_direct_rows = 0;
  int64_t max_blocked_rows = 0;

  // `wide` computes `panels` at once, `single` one.
  template <typename Kernel>
  struct Pair {
    int64_t panels = 0;
    Kernel wide = nullptr;
    Kernel single = nullptr;
  };
  Pair<DirectKernel> direct[kFormats][kMaxTileRows + 1];  // [format][rows]
  Pair<BlockedKernel> blocked[2][kMaxTileRows + 1];       // [with scales][rows]
  // `inputs` of one panel (within one group of 128 if kF8Block) as blocked kernels want them; null: they take the
  // stored form.
  void (*decode[kFormats])(const std::byte* panel, int64_t inputs, std::byte* out);
  // One row into a tile: `inputs` numbers, then zeros up to `padded_in`.
  void (*pack_row)(const float* x, int64_t inputs, int64_t padded_in, Activation activation, int64_t tile_rows,
                   uint32_t* out);
};

// The best table of this machine for a product.
const LinearKernels& linear_kernels(WeightFormat format, Activation activation);

// For tests: the instruction sets that this machine can run, best first, and the one to use from now on ("": the best;
// false: the machine lacks it). Not while another thread computes.
std::vector<std::string_view> linear_targets();
bool select_linear_target(std::string_view name);

// nullptr if the machine cannot run them.
const LinearKernels* avx512_bf16_linear_kernels();

}  // namespace plait::kernels
