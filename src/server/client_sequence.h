// One sequence of tokens that a client asked for: from the engine's outputs to text, logprobs and a finish reason.
//
// Owned by a Generation; used on the front end's loop thread only.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "scheduler/request.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace plait {

struct SequenceRequest {
  std::string rid;
  std::optional<size_t> replica;  // the one that is to run it; absent: the front end chooses
  std::string group;              // the rid as the client gave it, where several sequences share it: aborts all of them
  size_t prompt_index = 0;        // sequences of the same prompt (n > 1) share it
  Request request;                // its id is given when it is accepted
  std::vector<std::string> stop;
  bool skip_special_tokens = true;
  bool no_stop_trim = false;  // a matched stop string or token stays in the text
};

struct FinishReason {
  FinishKind kind = FinishKind::kStop;
  std::optional<int32_t> matched_token;
  std::optional<std::string> matched_text;
  ErrorKind error = ErrorKind::kCancelled;  // kAbort: why
  std::string message;                      // kAbort
};

class ClientSequence {
 public:
  using Clock = std::chrono::steady_clock;

  // `tokenizer` may be nullptr: no text.
  ClientSequence(SequenceRequest request, const Tokenizer* tokenizer, Clock::time_point arrived_at = Clock::now());

  // Takes an output in. What it added is "fresh" until the next call.
  void accept(RequestOutput&& output);

  const SequenceRequest& request() const { return request_; }
  RequestId id() const { return request_.request.id; }
  // `drawn_rid` counts if the client gave none.
  void accepted(RequestId id, std::string drawn_rid);

  const std::string& text() const { return text_; }
  std::string_view fresh_text() const { return std::string_view(text_).substr(fresh_text_begin_); }
  const std::vector<OutputToken>& tokens() const { return tokens_; }
  std::span<const OutputToken> fresh_tokens() const { return std::span(tokens_).subspan(fresh_tokens_begin_); }
  const std::vector<PromptLogprob>& prompt_logprobs() const { return prompt_logprobs_; }
  size_t prompt_tokens() const { return request_.request.prompt_ids.size(); }
  int64_t cached_tokens() const { return cached_tokens_; }
  // Compact rows of routed experts from the start that the request names, and how many of them the answer has: all but
  // the last token's, which was never an input, and none behind a stop string.
  std::shared_ptr<const std::string> routed_rows() const { return routed_rows_; }
  int64_t routed_row_count() const;

  const std::optional<FinishReason>& finish() const { return finish_; }
  // Finished here, by a stop string, while the engine still generates: it must be told to stop.
  bool ended_before_engine() const { return finish_.has_value() && !engine_finished_; }
  bool failed() const {
    return finish_ && finish_->kind == FinishKind::kAbort && finish_->error != ErrorKind::kCancelled;
  }

  Clock::time_point arrived_at() const { return arrived_at_; }
  double seconds_since_arrival(Clock::time_point now) const {
    return std::chrono::duration<double>(now - arrived_at_).count();
  }

 private:
  void append_text(const RequestOutput& output);

  SequenceRequest request_;
  std::optional<StreamingDetokenizer> detokenizer_;
  std::string text_;
  size_t fresh_text_begin_ = 0;
  std::vector<OutputToken> tokens_;
  size_t fresh_tokens_begin_ = 0;
  std::vector<PromptLogprob> prompt_logprobs_;
  int64_t cached_tokens_ = 0;
  std::shared_ptr<std::string> routed_rows_ = std::make_shared<std::string>();
  int64_t routed_rows_received_ = 0;
  bool started_ = false;
  bool engine_finished_ = false;
  std::optional<FinishReason> finish_;
  Clock::time_point arrived_at_;
};

}  // namespace plait
