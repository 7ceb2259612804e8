// Reads sampling parameters, in /generate's spelling and in OpenAI's, into the values that the engine takes.
//
// Both spellings share one table of ranges. Pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/sampling_params.h"
#include "server/api_context.h"
#include "server/client_sequence.h"
#include "server/request_fields.h"

namespace plait {

enum class SamplingSpelling { kNative, kOpenAi };

// Parameters as asked for, before they meet a prompt.
struct SamplingChoice {
  SamplingParams params;
  std::optional<int64_t> max_new_tokens;  // absent: the API's default
  int64_t samples = 1;                    // n
  std::vector<std::string> stop;
  bool skip_special_tokens = true;
  bool no_stop_trim = false;
};

// Violations stay in `fields`. Under kOpenAi the checkpoint's generation_config.json fills what the request leaves out.
// A seed is drawn if the request gives none.
SamplingChoice read_sampling(RequestFields& fields, SamplingSpelling spelling, const ApiContext& context);

// Seed of sample `index` of n: the first keeps the request's seed.
uint64_t sample_seed(uint64_t seed, int64_t index);
uint64_t draw_seed();

// What of `choice` a sequence of this prompt gets: its length is checked against the context (400,
// "context_length_exceeded"). `default_max_new_tokens` counts if the request gave none and is cut to what fits; absent:
// all that fits.
ApiStatus apply_sampling(const SamplingChoice& choice, std::optional<int64_t> default_max_new_tokens,
                         const ApiContext& context, SequenceRequest& sequence);

}  // namespace plait
