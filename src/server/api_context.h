// What the request parsers know about the model and the server's settings. Filled before requests are accepted, const
// from then on: any thread may read it.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "checkpoint/model_config.h"
#include "model/routed_experts.h"
#include "text/chat.h"
#include "text/tokenizer.h"

namespace plait {

// Sizes beyond which a request is refused, whatever the model could do.
struct RequestLimits {
  int64_t samples = 128;    // n
  size_t sequences = 4096;  // prompts x n
  size_t stop_strings = 64;
  size_t stop_string_bytes = 1024;
  size_t stop_token_ids = 1024;
  size_t logit_biases = 4096;
  int64_t top_logprobs = 128;  // /generate
  int64_t openai_top_logprobs = 20;
  size_t logprob_ids = 1024;                       // token_ids_logprob
  int64_t routed_expert_bytes = int64_t{2} << 30;  // in compact form, over the whole request
  int64_t logprob_values = 4 << 20;                // positions x values at each, over the whole request
  int64_t tokens = 32 << 20;                       // prompt + output, over all sequences of a request
  size_t rid_bytes = 256;
  size_t tools = 1024;
};

struct ApiContext {
  std::string served_model_name;
  std::string model_path;
  const Tokenizer* tokenizer = nullptr;  // nullptr: --skip-tokenizer-init
  std::optional<ChatFormat> chat_format;
  ModelConfig config;
  int64_t context_tokens = 0;  // longest prompt + output: the model's context, or the KV pool if that is smaller
  std::optional<RoutedExpertShape> routed_experts;  // of what the engine keeps of them; absent: nothing
  bool stream_output = false;
  std::optional<std::chrono::milliseconds> time_limit;
  int64_t replicas = 1;
  RequestLimits limits;
  int64_t started_at = 0;  // Unix time in seconds
};

}  // namespace plait
