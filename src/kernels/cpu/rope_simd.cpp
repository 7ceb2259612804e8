#include "kernels/cpu/implementations.h"
#include "kernels/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope_simd.cpp"
#include <hwy/foreach_target.h>

#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace plait::kernels::HWY_NAMESPACE {
namespace {

// Rotates `width` numbers; cosines and sines hold each pair's number twice, the first of the sines negated. Every
// product rounds by itself, as in the reference.
void rotate(const float* cosines, const float* sines, int64_t width, float* x) {
  const Floats d;
  const auto rotated = [&](Vector v, Vector c, Vector s)
                           HWY_ATTR { return hn::Add(hn::Mul(v, c), hn::Mul(hn::Reverse2(d, v), s)); };
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes)
    hn::StoreU(rotated(hn::LoadU(d, x + i), hn::LoadU(d, cosines + i), hn::LoadU(d, sines + i)), d, x + i);
  if (const int64_t left = width - i; left > 0)
    store_tail(rotated(load_tail(x + i, left), load_tail(cosines + i, left), load_tail(sines + i, left)), x + i, left);
}

}  // namespace
}  // namespace plait::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace plait::kernels {
HWY_EXPORT(rotate);

namespace fast {

void rope_interleaved(const Context& context, const RopeTable& table, std::span<const int32_t> positions, HeadRows x) {
  constexpr int64_t kPairs = 64;  // whose cosines and sines are computed once for all heads of a row
  const auto rotate = HWY_DYNAMIC_DISPATCH(rotate);
  context.pool->parallel_for(x.tokens, 4, [&](int64_t begin, int64_t end, int) {
    float cosines[2 * kPairs], sines[2 * kPairs];
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t first = 0; first < x.width / 2; first += kPairs) {
        const int64_t pairs = std::min(kPairs, x.width / 2 - first);
        for (int64_t i = 0; i < pairs; ++i) {
          const double angle = positions[t] * table.frequencies[first + i];
          cosines[2 * i] = cosines[2 * i + 1] = static_cast<float>(table.amplitude * std::cos(angle));
          sines[2 * i + 1] = static_cast<float>(table.amplitude * std::sin(angle));
          sines[2 * i] = -sines[2 * i + 1];
        }
        for (int64_t h = 0; h < x.heads; ++h) rotate(cosines, sines, 2 * pairs, x.at(t, h) + 2 * first);
      }
    }
  });
}

}  // namespace fast
}  // namespace plait::kernels
#endif
