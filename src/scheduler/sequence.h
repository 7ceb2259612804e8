// A request inside the scheduler: its tokens, what of them is in the KV pool, and the pages that hold it.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "scheduler/radix_cache.h"
#include "scheduler/request.h"

namespace plait {

using Clock = std::chrono::steady_clock;

struct Sequence {
  Sequence(Request&& request_, uint64_t arrival_, Clock::time_point now);

  Request request;
  uint64_t arrival = 0;  // in order of acceptance
  std::optional<Clock::time_point> deadline;
  std::vector<int32_t> tokens;  // prompt, then outputs; those from known_tokens on are future tokens
  int64_t known_tokens = 0;
  std::vector<int32_t> end_ids;  // that finish it: end-of-sequence unless ignored, stop ids
  bool retracted = false;        // it has run before
  int64_t cached_tokens = 0;     // of the prompt, at its first admission

  // While it runs; empty while it waits.
  int64_t computed_tokens = 0;  // the first of `tokens`, whose rows are in the KV pool
  int64_t launched_tokens = 0;  // the same with the rows of steps under way
  int steps_under_way = 0;      // that have rows of it
  bool ended = false;           // it has finished; its pages wait for the steps under way
  bool rows_are_bad = false;    // nobody else may find them in the prefix cache
  std::vector<int32_t> pages;   // page table; the first `shared_pages` belong to the prefix cache, the others to it
  int64_t shared_pages = 0;
  RadixCache::Node* prefix = nullptr;  // where the shared pages end; locked
  int32_t state_slot = -1;

  int64_t next_expert_position = 0;  // rows of routed experts before it have been handed over, or are not wanted
  // Of positions logprob_start, logprob_start + 1, ...; handed over with the first output.
  std::vector<PromptLogprob> prompt_logprobs;

  int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  int64_t prompt_size() const { return static_cast<int64_t>(request.prompt_ids.size()); }
  int64_t output_size() const { return size() - prompt_size(); }
  int64_t pending_tokens() const { return size() - launched_tokens; }
  int64_t remaining_tokens() const { return request.sampling.max_new_tokens - output_size(); }
  std::span<const int32_t> prompt() const { return std::span(tokens).first(request.prompt_ids.size()); }
  std::span<const int32_t> outputs() const { return std::span(tokens).subspan(request.prompt_ids.size()); }

  // One row a step: everything but the newest output is in the KV pool, or will be after the steps under way.
  bool decoding() const { return pending_tokens() == 1 && launched_tokens >= prompt_size(); }
  // Whether the next row's token is still being chosen.
  bool awaits_token() const { return launched_tokens >= known_tokens; }
  bool samples() const { return request.sampling.max_new_tokens > 0; }
  bool wants_prompt_logprobs() const;
  // First position whose row must be computed for the sake of its logits; size() if none.
  int64_t first_logit_position() const;
  // Tokens whose rows may be taken from the prefix cache: at least the last one is always computed.
  int64_t reusable_tokens() const { return std::min(first_logit_position(), size() - 1); }
  std::vector<RowKey> row_keys(int64_t begin, int64_t end) const;

  // How it finishes after the last token that is known, if it does.
  std::optional<Finish> finish_after_known_tokens() const;
  // The row of logits at `position`, for the sampler. `history` gets a copy of the outputs if a penalty needs them:
  // what follows in `tokens` changes while the step is under way.
  SamplingRow sampling_row(int64_t position, std::vector<int32_t>& history) const;
};

}  // namespace plait
