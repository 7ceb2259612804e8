// Passes over one row of logits, the length of a vocabulary. The sampler is made of these.
//
// Pure functions, safe from any thread; sums are added in a fixed order. NaN counts as -infinity, +infinity as the
// largest finite float.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace plait {

struct Candidate {
  float logit = 0;
  int32_t id = 0;
};

// The order in which tokens are ranked everywhere: higher logit first, ties: lower id first.
inline bool ranks_before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// The largest logit, at most the largest finite float; -infinity if there is none.
float max_of(std::span<const float> logits);

// First index of the largest logit, -1 if every one is NaN or -infinity.
int32_t argmax(std::span<const float> logits);

// weights[i] = exp((logits[i] - max) * inverse_temperature); returns their sum. `max` is max_of(logits), finite.
double softmax_weights(std::span<const float> logits, float max, float inverse_temperature, std::span<float> weights);

// Sum of exp(logits[i] - max).
double sum_of_exp(std::span<const float> logits, float max);

// The k first in rank, in no particular order; fewer if fewer are above -infinity.
std::vector<Candidate> top_ranked(std::span<const float> logits, int64_t k);

// All tokens with weight >= least_weight > 0, by id.
std::vector<Candidate> at_least(std::span<const float> logits, std::span<const float> weights, float least_weight);

}  // namespace plait
