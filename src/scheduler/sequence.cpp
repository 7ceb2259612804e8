#include "scheduler/sequence.h"

namespace plait {

Sequence::Sequence(Request&& request_, uint64_t arrival_, Clock::time_point now)
    : request(std::move(request_)), arrival(arrival_), tokens(request.prompt_ids) {
  if (request.time_limit) deadline = now + *request.time_limit;
  tokens.insert(tokens.end(), request.output_ids.begin(), request.output_ids.end());
  known_tokens = size();
  if (!request.sampling.ignore_eos) end_ids = request.eos_token_ids;
  end_ids.insert(end_ids.end(), request.sampling.stop_token_ids.begin(), request.sampling.stop_token_ids.end());
  next_expert_position = request.routed_experts_start;
  // Nothing precedes the first position, so there is nothing to compute for it.
  if (wants_prompt_logprobs() && request.logprob_start == 0)
    prompt_logprobs.push_back({.id = request.prompt_ids.front(), .logprob = std::nullopt});
}

bool Sequence::wants_prompt_logprobs() const {
  // A request that goes on after earlier outputs got them with the first one.
  return request.return_logprob && request.logprob_start >= 0 && request.output_ids.empty() &&
         known_tokens == prompt_size();
}

int64_t Sequence::first_logit_position() const {
  if (wants_prompt_logprobs()) {
    const int64_t next = request.logprob_start + static_cast<int64_t>(prompt_logprobs.size());
    if (next < prompt_size()) return next - 1;
  }
  return samples() ? size() - 1 : size();
}

std::vector<RowKey> Sequence::row_keys(int64_t begin, int64_t end) const {
  std::vector<RowKey> keys;
  keys.reserve(static_cast<size_t>(end - begin));
  for (int64_t i = begin; i < end; ++i) keys.push_back(row_key(tokens[static_cast<size_t>(i)], i, prompt_size()));
  return keys;
}

std::optional<Finish> Sequence::finish_after_known_tokens() const {
  const int64_t outputs = known_tokens - prompt_size();
  const int32_t newest = tokens[static_cast<size_t>(known_tokens - 1)];
  if (outputs > 0 && std::find(end_ids.begin(), end_ids.end(), newest) != end_ids.end())
    return Finish{.kind = FinishKind::kStop, .matched_token = newest};
  if (outputs >= request.sampling.max_new_tokens) return Finish{.kind = FinishKind::kLength};
  return std::nullopt;
}

SamplingRow Sequence::sampling_row(int64_t position, std::vector<int32_t>& history) const {
  SamplingRow row;
  if (request.return_logprob) {
    row.top_logprobs = request.top_logprobs;
    row.logprob_ids = request.logprob_ids;
  }
  if (position + 1 < size()) {
    row.target_id = tokens[static_cast<size_t>(position + 1)];
  } else if (samples()) {
    row.params = &request.sampling;
    row.prompt_ids = request.prompt_ids;
    row.output_index = output_size();
    if (request.sampling.penalises_output()) {
      history.assign(tokens.begin() + prompt_size(), tokens.begin() + known_tokens);
      row.output_ids = history;
      if (known_tokens < size()) row.newest_id = tokens.back();
    }
    row.end_ids = end_ids;
    row.want_logprob = request.return_logprob;
  }
  return row;
}

}  // namespace plait
