// Chooses tokens from logits.
//
// A choice depends on the row's logits, its parameters, its own history and (seed, output index) alone: the random
// number is a hash of those two, so the same seed gives the same text whatever else is in the batch, and again after a
// retraction or a crash.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "engine/sampling_params.h"
#include "tensor/matrix.h"

namespace plait {

inline constexpr int32_t kNoToken = std::numeric_limits<int32_t>::min();

// What one row of logits needs. All pointers outlive the call.
struct SamplingRow {
  const SamplingParams* params = nullptr;  // nullptr: no token is chosen (a prompt row whose logprob is wanted)
  std::span<const int32_t> prompt_ids;     // needed if params->penalises_prompt()
  std::span<const int32_t> output_ids;     // needed if params->penalises_output()
  // Follows output_ids: the newest token of the output, if it was a future one (model/step.h) when this was made. Known
  // when the row is sampled.
  int32_t newest_id = kNoToken;
  int64_t output_index = 0;          // tokens of the output so far
  std::span<const int32_t> end_ids;  // end-of-sequence and stop ids: impossible before min_new_tokens
  bool want_logprob = false;
  int32_t top_logprobs = 0;
  int32_t target_id = -1;                // logprob of this id instead of the chosen one (prompt logprobs)
  std::span<const int32_t> logprob_ids;  // token_ids_logprob: these ids' logprobs too
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};

struct SampledToken {
  int32_t id = -1;
  float logprob =
      0;  // natural log; of log-softmax(logits) before penalties and temperature, as SGLang and OpenAI report it
  std::vector<TokenLogprob> top;        // descending, ties: lower id first
  std::vector<TokenLogprob> requested;  // in the order of logprob_ids
  bool not_finite = false;              // every logit was NaN or -infinity: the request must fail
};

// logits: [rows.size(), vocab]; changed in place.
std::vector<SampledToken> sample(ThreadPool& pool, Rows logits, std::span<const SamplingRow> rows);

}  // namespace plait
