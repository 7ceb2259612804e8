#include "kernels/cpu/implementations.h"

namespace plait::kernels::reference {

void rope_interleaved(const Context&, const RopeTable& table, std::span<const int32_t> positions, HeadRows x) {
  for (int64_t t = 0; t < x.tokens; ++t) {
    for (int64_t i = 0; i < x.width / 2; ++i) {
      const double angle = positions[t] * table.frequencies[i];
      const auto cosine = static_cast<float>(table.amplitude * std::cos(angle));
      const auto sine = static_cast<float>(table.amplitude * std::sin(angle));
      for (int64_t h = 0; h < x.heads; ++h) {
        float* pair = x.at(t, h) + 2 * i;
        const float real = pair[0], imaginary = pair[1];
        pair[0] = real * cosine - imaginary * sine;
        pair[1] = real * sine + imaginary * cosine;
      }
    }
  }
}

}  // namespace plait::kernels::reference
