// Rotary positions with YaRN, in the interleaved pairing of MLA queries and keys: (x0, x1), (x2, x3), ... as complex
// numbers.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "checkpoint/model_config.h"
#include "kernels/context.h"
#include "kernels/linear.h"

namespace plait::kernels {

// Constants of one model's rotation. Source of the formulas: YaRN (arXiv 2309.00071) as DeepSeek-V3's
// inference/model.py has it.
struct RopeTable {
  std::vector<double> frequencies;  // [width / 2] radians per position
  double amplitude = 1;             // m(factor, mscale) / m(factor, mscale_all_dim)

  static RopeTable make(const RopeConfig& config, int64_t rope_width);
};

// (nope + rope)^-1/2, with YaRN times m(factor, mscale_all_dim)^2; m(s, a) = 0.1 a ln s + 1.
double mla_softmax_scale(const RopeConfig& config, int64_t qk_head_dim);
// First and last pair of YaRN's ramp, for tests and `plait check`: 10 and 23 for V3.
struct YarnRange {
  double low, high;
};
YarnRange yarn_range(const RopeConfig& config, int64_t rope_width);

// Rotates x in place. x: [tokens, heads, rope_width]; positions: [tokens]. Angles are computed in double: in float32
// they are off by 0.006 at position 160,000.
void rope_interleaved(const Context& context, const RopeTable& table, std::span<const int32_t> positions, HeadRows x);

}  // namespace plait::kernels
