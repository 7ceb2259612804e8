#include "engine/vocabulary_scan.h"

#include <bit>

namespace plait {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kLeastExponent = -87;  // exp of it is just above the least normal float
constexpr size_t kLanes = 16;          // loops of this length vectorise whole: four SSE or one AVX-512 register

inline float clamped_exponent(float logit, float max, float inverse_temperature) {
  const float x = (logit - max) * inverse_temperature;
  return x > 0 ? 0 : x;  // positive only for a logit of +infinity
}

inline float exp_lane(float x) {
  constexpr float kLog2E = 1.44269504F;
  constexpr float kLn2High = 0.693359375F;
  constexpr float kLn2Low = -2.12194440e-4F;
  constexpr float kRounder = 12582912;  // 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
  const float bounded = x > kLeastExponent ? x : kLeastExponent;
  const float shifted = bounded * kLog2E + kRounder;
  const float power = shifted - kRounder;
  const float r = (bounded - power * kLn2High) - power * kLn2Low;  // |r| <= ln(2) / 2
  // Minimax polynomial of (exp(r) - 1 - r) / r^2, from Cephes' expf.
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  const float mantissa = (p * r * r + r) + 1;
  const uint32_t scaled = std::bit_cast<uint32_t>(mantissa) + (std::bit_cast<uint32_t>(shifted) << 23);
  return x > kLeastExponent ? std::bit_cast<float>(scaled) : 0;
}

// Sum of the lanes, by halves.
double sum_lanes(std::array<double, kLanes> lanes) {
  for (size_t half = kLanes / 2; half > 0; half /= 2)
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

template <bool kStore>
double exp_pass(std::span<const float> logits, float max, float inverse_temperature, float* weights) {
  std::array<double, kLanes> sums{};
  const size_t whole = logits.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) {
    std::array<float, kLanes> lane;
    for (size_t j = 0; j < kLanes; ++j) lane[j] = exp_lane(clamped_exponent(logits[i + j], max, inverse_temperature));
    for (size_t j = 0; j < kLanes; ++j) sums[j] += lane[j];
    if constexpr (kStore)
      for (size_t j = 0; j < kLanes; ++j) weights[i + j] = lane[j];
  }
  for (size_t i = whole; i < logits.size(); ++i) {
    const float weight = exp_lane(clamped_exponent(logits[i], max, inverse_temperature));
    sums[i - whole] += weight;
    if constexpr (kStore) weights[i] = weight;
  }
  return sum_lanes(sums);
}

// Calls visit(i), ascending, for the values above `floor`. `visit` may raise the floor.
template <typename Visit>
void for_each_above(std::span<const float> values, float& floor, Visit&& visit) {
  const size_t whole = values.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes) {
    uint32_t any = 0;
    for (size_t j = 0; j < kLanes; ++j) any |= static_cast<uint32_t>(values[i + j] > floor);
    if (any == 0) [[likely]]
      continue;
    for (size_t j = i; j < i + kLanes; ++j)
      if (values[j] > floor) visit(j);
  }
  for (size_t i = whole; i < values.size(); ++i)
    if (values[i] > floor) visit(i);
}

}  // namespace

float exp_nonpositive(float x) {
  return exp_lane(x);
}

float max_of(std::span<const float> logits) {
  std::array<float, kLanes> lanes;
  lanes.fill(-kInfinity);
  const size_t whole = logits.size() / kLanes * kLanes;
  for (size_t i = 0; i < whole; i += kLanes)
    for (size_t j = 0; j < kLanes; ++j) lanes[j] = logits[i + j] > lanes[j] ? logits[i + j] : lanes[j];
  for (size_t i = whole; i < logits.size(); ++i) lanes[0] = logits[i] > lanes[0] ? logits[i] : lanes[0];
  return std::min(*std::max_element(lanes.begin(), lanes.end()), kLargest);
}

int32_t argmax(std::span<const float> logits) {
  const float max = max_of(logits);
  if (max == -kInfinity) return -1;
  // The first at or above it: +infinity was taken for the largest finite float.
  for (size_t i = 0; i < logits.size(); ++i)
    if (logits[i] >= max) return static_cast<int32_t>(i);
  return -1;
}

double softmax_weights(std::span<const float> logits, float max, float inverse_temperature, std::span<float> weights) {
  return exp_pass<true>(logits, max, inverse_temperature, weights.data());
}

double sum_of_exp(std::span<const float> logits, float max) {
  return exp_pass<false>(logits, max, 1, nullptr);
}

std::vector<Candidate> top_ranked(std::span<const float> logits, int64_t k) {
  std::vector<Candidate> best;
  const size_t wanted = static_cast<size_t>(std::min<int64_t>(k, static_cast<int64_t>(logits.size())));
  if (wanted == 0) return best;
  const auto keep_best = [&best, wanted] {
    std::nth_element(best.begin(), best.begin() + static_cast<ptrdiff_t>(wanted) - 1, best.end(), ranks_before);
    best.resize(wanted);
  };
  // Ids come in ascending order: one that only equals the k-th best so far ranks behind it.
  float floor = -kInfinity;
  for_each_above(logits, floor, [&](size_t id) {
    best.push_back({std::min(logits[id], kLargest), static_cast<int32_t>(id)});
    if (best.size() < 2 * wanted + kLanes) return;
    keep_best();
    floor = best.back().logit;
  });
  if (best.size() > wanted) keep_best();
  return best;
}

std::vector<Candidate> at_least(std::span<const float> logits, std::span<const float> weights, float least_weight) {
  std::vector<Candidate> found;
  float floor = std::nextafter(least_weight, 0.0F);
  for_each_above(weights, floor, [&](size_t id) {
    found.push_back({std::min(logits[id], kLargest), static_cast<int32_t>(id)});
  });
  return found;
}

}  // namespace plait
