// How the next token of a request is chosen. Plain values, checked once at the edge (server or command line).
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace plait {

struct SamplingParams {
  double temperature = 1;         // below 1e-6: greedy
  double top_p = 1;               // (0, 1]
  int64_t top_k = -1;             // -1: all
  double min_p = 0;               // [0, 1]
  double frequency_penalty = 0;   // [-2, 2]
  double presence_penalty = 0;    // [-2, 2]
  double repetition_penalty = 1;  // (0, 2]
  std::vector<std::pair<int32_t, float>> logit_bias;
  uint64_t seed = 0;  // always set: by the request, or drawn where it was accepted

  int64_t max_new_tokens = 128;
  int64_t min_new_tokens = 0;  // end-of-sequence and stop ids are impossible before
  std::vector<int32_t> stop_token_ids;
  bool ignore_eos = false;

  // Ranges as in the comments; kInvalid names the field and its range. `vocab_size` bounds ids.
  Status validate(int64_t vocab_size) const;
  // Whose tokens a penalty looks at.
  bool penalises_prompt() const { return repetition_penalty != 1; }
  bool penalises_output() const { return penalises_prompt() || frequency_penalty != 0 || presence_penalty != 0; }
  bool greedy() const { return temperature < 1e-6 || top_k == 1; }
};

}  // namespace plait
