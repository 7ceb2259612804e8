#include "kernels/rope.h"

#include <numbers>

#include "base/assert.h"
#include "kernels/cpu/implementations.h"

namespace plait::kernels {
namespace {

// YaRN's attention scaling m(factor, a); 1 where nothing is stretched.
double yarn_mscale(double factor, double a) {
  return factor > 1 ? 0.1 * a * std::log(factor) + 1 : 1.0;
}

}  // namespace

YarnRange yarn_range(const RopeConfig& config, int64_t rope_width) {
  const auto width = static_cast<double>(rope_width);
  // The pair (fractional) that turns so many times within the original context.
  const auto pair_that_turns = [&](double times) {
    return width * std::log(static_cast<double>(config.original_max_positions) / (2 * std::numbers::pi * times)) /
           (2 * std::log(config.theta));
  };
  return {.low = std::max(std::floor(pair_that_turns(config.beta_fast)), 0.0),
          .high = std::min(std::ceil(pair_that_turns(config.beta_slow)), width - 1)};
}

RopeTable RopeTable::make(const RopeConfig& config, int64_t rope_width) {
  PLAIT_ASSERT(rope_width % 2 == 0, "rope: dimensions are rotated in pairs");
  RopeTable table;
  for (int64_t i = 0; i < rope_width / 2; ++i)
    table.frequencies.push_back(std::pow(config.theta, -2 * static_cast<double>(i) / static_cast<double>(rope_width)));
  if (!config.yarn) return table;

  const YarnRange range = yarn_range(config, rope_width);
  const double span = range.high == range.low ? 0.001 : range.high - range.low;  // a step instead of a ramp
  for (int64_t i = 0; i < rope_width / 2; ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - range.low) / span, 0.0, 1.0);
    double& frequency = table.frequencies[i];
    frequency = frequency * (1 - ramp) + frequency / config.factor * ramp;
  }
  table.amplitude = yarn_mscale(config.factor, config.mscale) / yarn_mscale(config.factor, config.mscale_all_dim);
  return table;
}

double mla_softmax_scale(const RopeConfig& config, int64_t qk_head_dim) {
  const double scale = 1 / std::sqrt(static_cast<double>(qk_head_dim));
  if (!config.yarn) return scale;
  const double mscale = yarn_mscale(config.factor, config.mscale_all_dim);
  return scale * mscale * mscale;
}

void rope_interleaved(const Context& context, const RopeTable& table, std::span<const int32_t> positions, HeadRows x) {
  PLAIT_ASSERT(std::ssize(positions) == x.tokens, "rope: one position per token");
  PLAIT_ASSERT(std::ssize(table.frequencies) * 2 == x.width, "rope: the table is of another width");
  operations_of(context).rope_interleaved(context, table, positions, x);
}

}  // namespace plait::kernels
