#include "engine/sampling_params.h"

namespace plait {
namespace {

struct Range {
  const char* field;
  double value;
  double least;
  bool least_allowed;
  double most;
};

bool contains(const Range& range, double value) {
  // A NaN fails every comparison.
  return (range.least_allowed ? value >= range.least : value > range.least) && value <= range.most;
}

Status check_id(const char* field, int64_t id, int64_t vocab_size) {
  if (id >= 0 && id < vocab_size) return {};
  return invalid(fmt::format("{} names token {}, but the vocabulary has tokens 0 to {}", field, id, vocab_size - 1));
}

}  // namespace

Status SamplingParams::validate(int64_t vocab_size) const {
  constexpr double kLargest = std::numeric_limits<float>::max();
  const Range ranges[] = {
      {"temperature", temperature, 0, true, kLargest},
      {"top_p", top_p, 0, false, 1},
      {"min_p", min_p, 0, true, 1},
      {"frequency_penalty", frequency_penalty, -2, true, 2},
      {"presence_penalty", presence_penalty, -2, true, 2},
      {"repetition_penalty", repetition_penalty, 0, false, 2},
  };
  for (const Range& range : ranges) {
    if (!contains(range, range.value))
      return invalid(fmt::format("{} is {}; it must be in {}{}, {}]", range.field, range.value,
                                 range.least_allowed ? '[' : '(', range.least, range.most));
  }
  if (top_k != -1 && top_k < 1)
    return invalid(fmt::format("top_k is {}; it must be at least 1, or -1 for all tokens", top_k));
  if (max_new_tokens < 0) return invalid(fmt::format("max_new_tokens is {}; it must be at least 0", max_new_tokens));
  if (min_new_tokens < 0 || min_new_tokens > max_new_tokens)
    return invalid(fmt::format("min_new_tokens is {}; it must be in [0, max_new_tokens], which is {}", min_new_tokens,
                               max_new_tokens));
  for (const auto& [id, bias] : logit_bias) {
    PLAIT_RETURN_IF_ERROR(check_id("logit_bias", id, vocab_size));
    if (!std::isfinite(bias))
      return invalid(fmt::format("logit_bias of token {} is {}; it must be a finite number", id, bias));
  }
  for (const int32_t id : stop_token_ids) PLAIT_RETURN_IF_ERROR(check_id("stop_token_ids", id, vocab_size));
  return {};
}

}  // namespace plait
