// A generation request as the engine process sees it, ids in and ids out, and what comes back for it.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/sampler.h"
#include "engine/sampling_params.h"

namespace plait {

using RequestId = uint64_t;  // given by the front end, never reused while it lives

struct Request {
  RequestId id = 0;
  std::vector<int32_t> prompt_ids;
  // Tokens that were generated and delivered before: the request goes on after them (crash of the engine). Their number
  // counts towards max_new_tokens and the output index.
  std::vector<int32_t> output_ids;
  SamplingParams sampling;
  std::vector<int32_t> eos_token_ids;  // of the model; not consulted with ignore_eos
  int32_t priority = 0;                // higher first, under --schedule-policy priority
  bool return_logprob = false;
  int64_t logprob_start = -1;  // first prompt position whose logprob is wanted; -1: outputs only
  int32_t top_logprobs = 0;
  std::vector<int32_t> logprob_ids;  // token_ids_logprob
  bool return_routed_experts = false;
  int64_t routed_experts_start = 0;  // first position whose row is wanted
  // Time left until the request fails with `deadline`; absent: none. Waiting and running count.
  std::optional<std::chrono::milliseconds> time_limit;
};

enum class FinishKind : uint8_t { kStop, kLength, kAbort };

struct Finish {
  FinishKind kind = FinishKind::kStop;
  std::optional<int32_t> matched_token;     // kStop: the end-of-sequence or stop id
  ErrorKind error = ErrorKind::kCancelled;  // kAbort: why
  std::string message;                      // kAbort: in words
};

struct OutputToken {
  int32_t id = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top;
  std::vector<TokenLogprob> requested;
};

// Logprob of one prompt position given those before it; the first position of a prompt has none.
struct PromptLogprob {
  int32_t id = 0;
  std::optional<float> logprob;
  std::vector<TokenLogprob> top;
  std::vector<TokenLogprob> requested;
};

// Which experts were chosen for consecutive positions. Compact rows (model/routed_experts.h): [count, row].
struct RoutedRows {
  int64_t count = 0;
  std::string ids;
};

// News about one request. Every accepted request ends with exactly one output that has `finish`.
struct RequestOutput {
  RequestId id = 0;
  std::vector<OutputToken> tokens;             // new ones
  std::vector<PromptLogprob> prompt_logprobs;  // once, with the first token
  int64_t cached_tokens = 0;                   // of the prompt, found in the prefix cache
  // New ones, from where the last output ended. With a token come all positions before it.
  RoutedRows routed_experts;
  std::optional<Finish> finish;
};

}  // namespace plait
