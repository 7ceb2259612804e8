// The order of operations is SGLang's:
//   1. logits -= frequency_penalty * count + presence_penalty, for ids among the outputs;
//   2. logits /= repetition_penalty where positive, *= where negative, for ids among prompt and outputs;
//   3. end ids become impossible before min_new_tokens;
//   4. logits += logit_bias;
//   5. softmax of logits / temperature;
//   6. top_k, top_p and min_p together. Each keeps a prefix of the tokens in rank order (ranks_before), so the shortest
//      prefix wins: k tokens; the fewest whose probability, before any filter, reaches top_p; those with at least min_p
//      times the largest probability;
//   7. one token of what is left, by inversion of the cumulative distribution in the order of ids.
#include "engine/sampler.h"

#include "base/assert.h"
#include "engine/philox.h"
#include "engine/vocabulary_scan.h"

namespace plait {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Working memory of one thread, kept between calls.
struct Scratch {
  std::vector<float> adjusted;  // [vocab]
  std::vector<float> weights;   // [vocab]
  std::vector<int32_t> counts;  // [vocab], all zero between uses
};

Scratch& scratch_of(size_t vocab) {
  static thread_local Scratch scratch;
  scratch.adjusted.resize(vocab);
  scratch.weights.resize(vocab);
  scratch.counts.resize(vocab, 0);
  return scratch;
}

bool masks_end_ids(const SamplingRow& row) {
  return row.output_index < row.params->min_new_tokens && !row.end_ids.empty();
}

template <typename Fn>
void for_each_output(const SamplingRow& row, Fn&& fn) {
  for (const int32_t id : row.output_ids) fn(id);
  if (row.newest_id != kNoToken) fn(row.newest_id);
}

bool has_output_penalty(const SamplingParams& params) {
  return params.frequency_penalty != 0 || params.presence_penalty != 0;
}

void apply_output_penalties(const SamplingRow& row, std::span<float> logits, std::span<int32_t> counts) {
  const auto frequency = static_cast<float>(row.params->frequency_penalty);
  const auto presence = static_cast<float>(row.params->presence_penalty);
  for_each_output(row, [&](int32_t id) { ++counts[static_cast<size_t>(id)]; });
  for_each_output(row, [&](int32_t id) {
    int32_t& count = counts[static_cast<size_t>(id)];
    if (count == 0) return;  // an earlier occurrence did it
    logits[static_cast<size_t>(id)] -= frequency * static_cast<float>(count) + presence;
    count = 0;
  });
}

void apply_repetition_penalty(const SamplingRow& row, std::span<float> logits, std::span<int32_t> seen) {
  const auto penalty = static_cast<float>(row.params->repetition_penalty);
  const auto penalise = [&](int32_t id) {
    if (seen[static_cast<size_t>(id)]++ != 0) return;
    float& logit = logits[static_cast<size_t>(id)];
    logit = logit > 0 ? logit / penalty : logit * penalty;
  };
  const auto forget = [&](int32_t id) { seen[static_cast<size_t>(id)] = 0; };
  std::for_each(row.prompt_ids.begin(), row.prompt_ids.end(), penalise);
  for_each_output(row, penalise);
  std::for_each(row.prompt_ids.begin(), row.prompt_ids.end(), forget);
  for_each_output(row, forget);
}

// Steps 1 to 4. The row itself if there is nothing to do.
std::span<const float> adjusted_logits(std::span<const float> logits, const SamplingRow& row, Scratch& scratch) {
  const SamplingParams& params = *row.params;
  const bool penalties = has_output_penalty(params);
  const bool repetition = params.penalises_prompt();
  const bool masked = masks_end_ids(row);
  if (!penalties && !repetition && !masked && params.logit_bias.empty()) return logits;
  const std::span<float> adjusted(scratch.adjusted);
  std::copy(logits.begin(), logits.end(), adjusted.begin());
  if (penalties) apply_output_penalties(row, adjusted, scratch.counts);
  if (repetition) apply_repetition_penalty(row, adjusted, scratch.counts);
  if (masked)
    for (const int32_t id : row.end_ids) adjusted[static_cast<size_t>(id)] = -kInfinity;
  for (const auto& [id, bias] : params.logit_bias) adjusted[static_cast<size_t>(id)] += bias;
  return adjusted;
}

// The last in rank order of the fewest candidates whose weights reach `mass`; of all of them if they don't.
Candidate last_within_mass(std::vector<Candidate>& candidates, std::span<const float> weights, double mass) {
  size_t begin = 0, end = candidates.size();
  const auto at = [&](size_t i) { return candidates.begin() + static_cast<ptrdiff_t>(i); };
  while (end - begin > 1) {
    const size_t middle = begin + (end - begin) / 2;
    std::nth_element(at(begin), at(middle), at(end), ranks_before);
    double upper = 0;
    for (size_t i = begin; i < middle; ++i) upper += weights[static_cast<size_t>(candidates[i].id)];
    if (upper >= mass) {
      end = middle;
    } else {
      mass -= upper;
      begin = middle;
    }
  }
  return candidates[begin];
}

// The last token in rank order that top_k and top_p keep.
Candidate last_kept(std::span<const float> logits, std::span<const float> weights, double total,
                    const SamplingParams& params) {
  const auto vocab = static_cast<int64_t>(logits.size());
  const bool limits_count = params.top_k > 0 && params.top_k < vocab;
  std::vector<Candidate> candidates;
  if (limits_count) {
    candidates = top_ranked(logits, params.top_k);
  } else {
    // Tokens lighter than this weigh less than (1 - top_p) * total together, so none of them is needed for the rest.
    const double least = (1 - params.top_p) * total / static_cast<double>(vocab);
    candidates = at_least(logits, weights, std::max(static_cast<float>(least), std::numeric_limits<float>::min()));
  }
  if (params.top_p < 1) return last_within_mass(candidates, weights, params.top_p * total);
  return *std::max_element(candidates.begin(), candidates.end(), ranks_before);
}

// Step 7 over all tokens.
int32_t draw(std::span<const float> weights, double total, double uniform) {
  constexpr size_t kBlock = 256;
  double remaining = uniform * total;
  size_t i = 0;
  for (; i + kBlock < weights.size(); i += kBlock) {
    std::array<double, 4> sums{};
    for (size_t j = 0; j < kBlock; ++j) sums[j % 4] += weights[i + j];
    const double block = (sums[0] + sums[2]) + (sums[1] + sums[3]);
    if (block > remaining) break;
    remaining -= block;
  }
  for (; i < weights.size(); ++i) {
    if (weights[i] > remaining) return static_cast<int32_t>(i);
    remaining -= weights[i];
  }
  // Rounding left a remainder: the last token that is possible at all.
  while (i > 0 && weights[i - 1] == 0) --i;
  return static_cast<int32_t>(i) - 1;
}

// Step 7 over `kept`, by id.
int32_t draw(std::span<const Candidate> kept, std::span<const float> weights, double uniform) {
  double total = 0;
  for (const Candidate& token : kept) total += weights[static_cast<size_t>(token.id)];
  double below = 0;
  for (const Candidate& token : kept) {
    below += weights[static_cast<size_t>(token.id)];
    if (below > uniform * total) return token.id;
  }
  return kept.back().id;
}

// Steps 5 to 7. -1 if no token is possible.
int32_t choose_at_random(std::span<const float> logits, const SamplingRow& row, std::span<float> weights) {
  const SamplingParams& params = *row.params;
  const float max = max_of(logits);
  if (max == -kInfinity) return -1;
  const double total = softmax_weights(logits, max, static_cast<float>(1 / params.temperature), weights);
  const double uniform = uniform_of(params.seed, static_cast<uint64_t>(row.output_index));
  const bool ranked = params.top_p < 1 || (params.top_k > 0 && params.top_k < static_cast<int64_t>(logits.size()));
  if (!ranked && params.min_p == 0) return draw(weights, total, uniform);

  // The largest weight is exactly 1, so min_p is a weight.
  const float least_weight = std::max(static_cast<float>(params.min_p), std::numeric_limits<float>::min());
  std::vector<Candidate> kept;
  if (ranked) {
    const Candidate last = last_kept(logits, weights, total, params);
    const float last_weight = weights[static_cast<size_t>(last.id)];
    kept = at_least(logits, weights, std::max(least_weight, last_weight));
    std::erase_if(kept, [&last](const Candidate& token) { return ranks_before(last, token); });
  } else {
    kept = at_least(logits, weights, least_weight);
  }
  return draw(kept, weights, uniform);
}

int32_t choose(std::span<const float> logits, const SamplingRow& row, Scratch& scratch) {
  const auto adjusted = adjusted_logits(logits, row, scratch);
  return row.params->greedy() ? argmax(adjusted) : choose_at_random(adjusted, row, scratch.weights);
}

// log-softmax of raw logits.
class LogProbability {
 public:
  explicit LogProbability(std::span<const float> logits)
      : logits_(logits), max_(max_of(logits)), log_sum_(std::log(sum_of_exp(logits, max_))) {}

  float of(int32_t id) const {
    PLAIT_ASSERT(id >= 0 && static_cast<size_t>(id) < logits_.size(), "a token outside the vocabulary");
    const float logit = logits_[static_cast<size_t>(id)];
    if (std::isnan(logit)) return -kInfinity;
    const double below_max = std::min(static_cast<double>(logit) - max_, 0.0);
    return static_cast<float>(below_max - log_sum_);
  }

  std::vector<TokenLogprob> top(int32_t count) const {
    std::vector<Candidate> best = top_ranked(logits_, count);
    std::sort(best.begin(), best.end(), ranks_before);
    std::vector<TokenLogprob> listed;
    listed.reserve(best.size());
    for (const Candidate& token : best) listed.push_back({token.id, of(token.id)});
    return listed;
  }

 private:
  std::span<const float> logits_;
  float max_;
  double log_sum_;
};

void add_logprobs(std::span<const float> logits, const SamplingRow& row, SampledToken& token) {
  const int32_t subject = row.target_id >= 0 ? row.target_id : token.id;
  const bool of_subject = (row.want_logprob || row.target_id >= 0) && subject >= 0;
  if (!of_subject && row.top_logprobs == 0 && row.logprob_ids.empty()) return;
  const LogProbability log_probability(logits);
  if (of_subject) token.logprob = log_probability.of(subject);
  token.top = log_probability.top(row.top_logprobs);
  for (const int32_t id : row.logprob_ids) token.requested.push_back({id, log_probability.of(id)});
}

SampledToken sample_row(std::span<const float> logits, const SamplingRow& row) {
  SampledToken token;
  if (row.params != nullptr) {
    token.id = choose(logits, row, scratch_of(logits.size()));
    token.not_finite = token.id < 0;
  } else {
    token.not_finite = max_of(logits) == -kInfinity;
  }
  if (!token.not_finite) add_logprobs(logits, row, token);
  return token;
}

}  // namespace

std::vector<SampledToken> sample(ThreadPool& pool, Rows logits, std::span<const SamplingRow> rows) {
  PLAIT_ASSERT(logits.rows == static_cast<int64_t>(rows.size()), "one row of logits for each sampling row");
  std::vector<SampledToken> tokens(rows.size());
  pool.parallel_for(logits.rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const std::span<const float> row(logits.row(i), static_cast<size_t>(logits.cols));
      tokens[static_cast<size_t>(i)] = sample_row(row, rows[static_cast<size_t>(i)]);
    }
  });
  return tokens;
}

}  // namespace plait
