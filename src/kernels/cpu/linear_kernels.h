// The innermost loops of the fast products, one table per instruction set.
//
// One vector of a kernel holds the 16 outputs of a panel (panels.h). Every result is a single chain of fused
// multiply-adds in ascending order of k, whichever kernel of a table computes it: that is how a row stays independent
// of its company. For kF8Block the chain restarts from zero at every 128 inputs, and y += chain * scale.
//
// x is packed in tiles of up to 28 rows: [k / 16w][row][16] words of 4 bytes. A word is one float32 (w = 1) or two
// bfloat16 (w = 2), see `inputs_per_word`. Inputs beyond the last are zero up to the padding of the panels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/linear.h"

namespace plait::kernels {

constexpr int kMaxTileRows = 28;

// Instrumented kernels take minutes to compile; a few sizes run the same code.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kFewSizes = true;
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kFewSizes = true;
#else
constexpr bool kFewSizes = false;
#endif
#else
constexpr bool kFewSizes = false;
#endif

// What kernels read: the formats of PackedMatrix, and kF8Block panels whose values were decoded beforehand. Those look
// like kF8Block with every e4m3 value replaced by `decoded_bytes` as the kernels compute with it.
constexpr int kPanelForms = 4;
constexpr int kDecodedF8 = 3;

// y = x W^T for one tile of x over a stretch of inputs, or y += x W^T.
struct PanelCall {
  const uint32_t* x = nullptr;         // the tile, from the first input of the stretch on
  const std::byte* weights = nullptr;  // the first panel, likewise
  int64_t panel_bytes = 0;             // between panels
  int64_t inputs = 0;                  // a multiple of 32; of 128 if kF8Block and not the last stretch
  float* y = nullptr;
  int64_t y_stride = 0;
  int64_t outputs = 0;  // from the first panel on; the last panel of a matrix may have fewer than 16
  bool accumulate = false;
};
using PanelKernel = void (*)(const PanelCall& call);

struct LinearKernels {
  std::string_view name;
  int64_t inputs_per_word = 1;
  // More rows than max_single_rows are cut into tiles of at most max_tile_rows, the fastest size.
  int64_t max_single_rows = 0;
  int64_t max_tile_rows = 0;

  struct Sizes {
    int64_t panels = 0;  // that `wide` computes at once
    PanelKernel wide = nullptr;
    PanelKernel single = nullptr;  // one panel
  };
  Sizes kernels[kPanelForms][kMaxTileRows + 1];  // [form][rows]

  // One panel of kF8Block, `inputs` from `panel` on, into the decoded form.
  void (*decode)(const std::byte* panel, int64_t inputs, std::byte* out) = nullptr;
  int64_t decoded_bytes = 0;  // of one value

  // One row into a tile: `inputs` numbers, then zeros up to `padded_in`.
  void (*pack_row)(const float* x, int64_t inputs, int64_t padded_in, Activation activation, int64_t tile_rows,
                   uint32_t* out) = nullptr;
};

// The fastest table of this machine for a product.
const LinearKernels& linear_kernels(WeightFormat format, Activation activation);

// For tests: the instruction sets that this machine can run, and the one to use from now on ("": for every product the
// fastest; false: the machine lacks it). Not while another thread computes.
std::vector<std::string_view> linear_targets();
bool select_linear_target(std::string_view name);

// nullptr if the machine cannot run them.
const LinearKernels* avx512_bf16_linear_kernels();

}  // namespace plait::kernels
