#include "engine/vocabulary_scan.h"

namespace plait {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr size_t kLanes = 16;  // loops of this length vectorise whole: four SSE or one AVX-512 register

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
