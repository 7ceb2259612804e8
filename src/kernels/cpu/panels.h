// Storage of the fast implementation: panels of 16 outputs, made for vectors that hold 16 outputs.
//
// A panel runs over all inputs k, padded with zeros to a multiple of 32, and is contiguous; panels follow each other.
// The last one is padded with zero outputs. Within a panel, with `o` counting its outputs:
//   kF32      [k][o] float32
//   kBF16     [k / 2][o][k % 2] bfloat16: 64 bytes that a dot product of pairs takes as they are
//   kF8Block  for each 128 inputs: [k / 2][o][k % 2] e4m3, then [o] float32 scales. Every output has a scale of its
//   own,
//             so that parts of a fused or sharded matrix may begin at any row.
// Kernels decode an e4m3 byte to 2^-8 of its value (what its bits mean as IEEE half); stored scales are 2^8 times the
// checkpoint's.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/linear_product.h"
#include "kernels/linear.h"

namespace plait::kernels {

constexpr int64_t kPanelOutputs = 16;
constexpr float kF8ScaleFactor = 256;

struct PanelLayout {
  WeightFormat format;
  int64_t out_features, in_features;
  int64_t padded_in;    // in_features rounded up to 32
  int64_t panels;       // of 16 outputs
  int64_t panel_bytes;  // distance between panels, a multiple of 64

  PanelLayout(WeightFormat format, int64_t out_features, int64_t in_features);
  explicit PanelLayout(const PackedMatrix& matrix)
      : PanelLayout(matrix.format(), matrix.out_features(), matrix.in_features()) {}

  int64_t element_bytes() const;
  // Offset in a panel of inputs from k on (k a multiple of 32; of 128 if kF8Block).
  int64_t input_offset(int64_t k) const;
  // Offset in a panel of inputs k and k + 1 (k even) of output o, and of o's scale for input k.
  int64_t pair_offset(int64_t k, int64_t o) const;
  int64_t scale_offset(int64_t k, int64_t o) const;
};

void pack_panels(PackedMatrix& matrix, int64_t first_row, const WeightSource& source);
// Element (i, j) as float32, scale included.
float panel_element(const PackedMatrix& matrix, int64_t i, int64_t j);

}  // namespace plait::kernels
