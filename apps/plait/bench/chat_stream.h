// One streamed chat completion from a server on loopback, with the time of its first and last token.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "base/error.h"

namespace plait {

struct ChatStream {
  std::chrono::steady_clock::time_point first_token, last_token;
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
};

// Blocks until the stream has ended. `tokens` are generated whatever they are. kUnavailable: nobody listens yet, or the
// server answered 503; anything else is for good.
Result<ChatStream> stream_chat(uint16_t port, const std::string& model, const std::string& prompt, int64_t tokens);

}  // namespace plait
