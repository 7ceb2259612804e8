#include "tests/scheduler/fake_model.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "base/assert.h"

namespace plait {
namespace {

uint64_t mix(uint64_t a, uint64_t b) {  // splitmix64's finaliser
  uint64_t x = a * 0x9E3779B97F4A7C15 + b + 0x632BE59BD9B4E019;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

uint64_t kv_row(uint64_t before, int32_t token, int64_t position, int64_t expanded_until) {
  const uint64_t form = position < expanded_until ? 0 : static_cast<uint64_t>(expanded_until);
  return mix(mix(mix(before, static_cast<uint64_t>(token)), static_cast<uint64_t>(position)), form);
}

uint64_t hash_of(std::span<const int32_t> ids) {
  uint64_t hash = ids.size();
  for (const int32_t id : ids) hash = mix(hash, static_cast<uint64_t>(id));
  return hash;
}

float logprob_of(uint64_t prefix, int32_t id) {
  return -static_cast<float>(mix(prefix, static_cast<uint64_t>(id)) % 4096) / 256;
}

SampledToken choose(uint64_t prefix, const SamplingRow& row) {
  SampledToken token;
  if (row.params != nullptr) {
    uint64_t hash = mix(mix(prefix, row.params->seed), static_cast<uint64_t>(row.output_index));
    if (row.params->penalises_prompt()) hash = mix(hash, hash_of(row.prompt_ids));
    if (row.params->penalises_output()) {
      std::vector<int32_t> outputs(row.output_ids.begin(), row.output_ids.end());
      if (row.newest_id != kNoToken) outputs.push_back(row.newest_id);
      PLAIT_ASSERT(std::ssize(outputs) == row.output_index, "a penalty sees all outputs");
      hash = mix(hash, hash_of(outputs));
    }
    token.id = static_cast<int32_t>(hash % FakeModel::kVocab);
    const bool masked = row.output_index < row.params->min_new_tokens;
    while (masked && std::find(row.end_ids.begin(), row.end_ids.end(), token.id) != row.end_ids.end())
      token.id = (token.id + 1) % FakeModel::kVocab;
  }
  if (row.want_logprob) token.logprob = logprob_of(prefix, token.id);
  if (row.target_id >= 0) token.logprob = logprob_of(prefix, row.target_id);
  for (int32_t i = 0; i < row.top_logprobs; ++i) token.top.push_back({i, logprob_of(prefix, i)});
  for (const int32_t id : row.logprob_ids) token.requested.push_back({id, logprob_of(prefix, id)});
  return token;
}

bool same(const std::vector<TokenLogprob>& a, const std::vector<TokenLogprob>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](auto& x, auto& y) { return x.id == y.id && x.logprob == y.logprob; });
}

}  // namespace

uint64_t& FakeModel::row_at(const StepSequence& sequence, int64_t position) {
  const int64_t page = sequence.pages.at(static_cast<size_t>(position / page_tokens_));
  return rows_.at(static_cast<size_t>(page * page_tokens_ + position % page_tokens_));
}

void FakeModel::write_rows(const Step& step, const StepSequence& sequence) {
  for (int64_t i = 0; i < sequence.row_count; ++i) {
    const int64_t position = sequence.first_position + i;
    const uint64_t before = position == 0 ? 0 : row_at(sequence, position - 1);
    const auto row = static_cast<size_t>(sequence.row_begin + i);
    row_at(sequence, position) = kv_row(before, step.token_ids[row], step.positions[row], sequence.expanded_until);
  }
}

uint64_t FakeModel::read_prefix(const StepSequence& sequence, int64_t position) {
  uint64_t hash = 0;
  for (int64_t i = 0; i <= position; ++i) hash = mix(hash, row_at(sequence, i));
  return hash;
}

void FakeModel::check(const Step& step) const {
  std::map<int32_t, int> seen_by;  // page -> sequences with it in their table
  std::map<int32_t, int> slots;
  for (const StepSequence& sequence : step.sequences) {
    for (const int32_t page : sequence.pages) ++seen_by[page];
    PLAIT_ASSERT(++slots[sequence.state_slot] == 1, "two sequences of a step in one state slot");
  }
  for (const StepSequence& sequence : step.sequences) {
    const auto first = static_cast<size_t>(sequence.first_position / page_tokens_);
    const auto last = static_cast<size_t>((sequence.first_position + sequence.row_count - 1) / page_tokens_);
    PLAIT_ASSERT(sequence.pages.size() == last + 1, "the page table does not end with the last row's page");
    for (size_t i = first; i <= last; ++i)
      PLAIT_ASSERT(seen_by[sequence.pages[i]] == 1, "a page is written that another sequence of the step sees");
  }
}

std::vector<SampledToken> FakeModel::execute(const Step& step, std::span<const SamplingRow> rows) {
  if (before_step) before_step(step);
  check(step);
  PLAIT_ASSERT(rows.size() == step.logit_rows.size(), "one sampling row for each row of logits");
  for (const StepSequence& sequence : step.sequences) write_rows(step, sequence);
  rows_computed_ += step.rows();

  std::vector<SampledToken> tokens;
  auto sequence = step.sequences.begin();
  for (size_t i = 0; i < rows.size(); ++i) {
    while (step.logit_rows[i] >= sequence->row_begin + sequence->row_count) ++sequence;
    const int64_t position = sequence->first_position + step.logit_rows[i] - sequence->row_begin;
    tokens.push_back(choose(read_prefix(*sequence, position), rows[i]));
    if (is_not_finite && is_not_finite(rows[i])) tokens.back() = {.not_finite = true};
  }
  return tokens;
}

void FakeModel::launch(std::span<const StepCall> of_dp_ranks) {
  PLAIT_ASSERT(of_dp_ranks.size() == 1, "the fake is one data-parallel rank");
  launched_.push_back(of_dp_ranks.front());
  PLAIT_ASSERT(std::ssize(launched_) <= ahead_.steps, "more steps are under way than were promised");
}

// As late as can be: whatever was planned meanwhile did not know what this step finds.
std::vector<std::vector<SampledToken>> FakeModel::collect() {
  const StepCall call = launched_.front();
  launched_.pop_front();
  const auto known = [&](int32_t id) { return is_future(id) ? chosen_.at(state_slot_of(id)) : id; };
  Step step = *call.step;
  for (int32_t& id : step.token_ids) id = known(id);
  std::vector<SamplingRow> rows(call.rows.begin(), call.rows.end());
  for (SamplingRow& row : rows)
    if (row.newest_id != kNoToken) row.newest_id = known(row.newest_id);
  std::vector<SampledToken> sampled = execute(step, rows);
  chosen_.clear();
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].params == nullptr) continue;
    for (const StepSequence& sequence : step.sequences)
      if (step.logit_rows[i] == sequence.row_begin + sequence.row_count - 1)
        chosen_[sequence.state_slot] = sampled[i].id;
  }
  return {std::move(sampled)};
}

ExpectedRun expected_run(const Request& request) {
  ExpectedRun run;
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  std::vector<int32_t> tokens = request.prompt_ids;
  tokens.insert(tokens.end(), request.output_ids.begin(), request.output_ids.end());
  std::vector<int32_t> end_ids = request.sampling.stop_token_ids;
  if (!request.sampling.ignore_eos)
    end_ids.insert(end_ids.end(), request.eos_token_ids.begin(), request.eos_token_ids.end());
  const auto is_end = [&](int32_t id) { return std::find(end_ids.begin(), end_ids.end(), id) != end_ids.end(); };
  const bool prompt_logprobs = request.return_logprob && request.logprob_start >= 0 && request.output_ids.empty();
  if (prompt_logprobs && request.logprob_start == 0) run.prompt_logprobs.push_back({request.prompt_ids[0], {}, {}, {}});

  uint64_t row = 0, prefix = 0;
  for (int64_t position = 0;; ++position) {
    if (!request.output_ids.empty() && position == 0 && is_end(request.output_ids.back())) {
      run.finish = FinishKind::kStop;
      return run;
    }
    const auto size = static_cast<int64_t>(tokens.size());
    if (size - prompt >= request.sampling.max_new_tokens && (position == size || size > prompt)) return run;
    row = kv_row(row, tokens[static_cast<size_t>(position)], position, prompt);
    prefix = mix(prefix, row);
    SamplingRow sampling;
    if (request.return_logprob) {
      sampling.top_logprobs = request.top_logprobs;
      sampling.logprob_ids = request.logprob_ids;
    }
    if (position + 1 < prompt) {
      if (!prompt_logprobs || position + 1 < request.logprob_start) continue;
      sampling.target_id = tokens[static_cast<size_t>(position + 1)];
      const SampledToken token = choose(prefix, sampling);
      run.prompt_logprobs.push_back({sampling.target_id, token.logprob, token.top, token.requested});
    } else if (position + 1 == size && request.sampling.max_new_tokens > 0) {
      sampling.params = &request.sampling;
      sampling.prompt_ids = request.prompt_ids;
      sampling.output_ids = std::span(tokens).subspan(static_cast<size_t>(prompt));
      sampling.output_index = std::ssize(sampling.output_ids);
      sampling.end_ids = end_ids;
      sampling.want_logprob = request.return_logprob;
      const SampledToken token = choose(prefix, sampling);
      run.tokens.push_back({token.id, token.logprob, token.top, token.requested});
      tokens.push_back(token.id);
      if (is_end(token.id)) {
        run.finish = FinishKind::kStop;
        return run;
      }
    }
  }
}

std::string difference(const std::vector<OutputToken>& actual, const ExpectedRun& expected) {
  if (actual.size() > expected.tokens.size())
    return fmt::format("{} tokens instead of {}", actual.size(), expected.tokens.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    const OutputToken& token = expected.tokens[i];
    if (actual[i].id != token.id) return fmt::format("token {} is {} instead of {}", i, actual[i].id, token.id);
    if (actual[i].logprob != token.logprob || !same(actual[i].top, token.top) ||
        !same(actual[i].requested, token.requested))
      return fmt::format("logprobs of token {} differ", i);
  }
  return "";
}

std::string difference(const std::vector<PromptLogprob>& actual, const ExpectedRun& expected) {
  if (actual.size() != expected.prompt_logprobs.size())
    return fmt::format("{} prompt logprobs instead of {}", actual.size(), expected.prompt_logprobs.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    const PromptLogprob& wanted = expected.prompt_logprobs[i];
    if (actual[i].id != wanted.id || actual[i].logprob != wanted.logprob || !same(actual[i].top, wanted.top) ||
        !same(actual[i].requested, wanted.requested))
      return fmt::format("prompt logprob {} differs", i);
  }
  return "";
}

}  // namespace plait
