#include "server/client_sequence.h"

namespace plait {

ClientSequence::ClientSequence(SequenceRequest request, const Tokenizer* tokenizer, Clock::time_point arrived_at)
    : request_(std::move(request)), arrived_at_(arrived_at) {
  if (tokenizer != nullptr) {
    detokenizer_.emplace(tokenizer, request_.stop, request_.skip_special_tokens, request_.no_stop_trim);
  }
}

void ClientSequence::accepted(RequestId id, std::string drawn_rid) {
  request_.request.id = id;
  if (request_.rid.empty()) request_.rid = std::move(drawn_rid);
}

int64_t ClientSequence::routed_row_count() const {
  const auto inputs = static_cast<int64_t>(prompt_tokens() + tokens_.size()) - 1;
  return std::clamp<int64_t>(inputs - request_.request.routed_experts_start, 0, routed_rows_received_);
}

// A matched end-of-sequence or stop id is a token of the output but not of the text.
void ClientSequence::append_text(const RequestOutput& output) {
  std::vector<int32_t> ids;
  ids.reserve(output.tokens.size());
  for (const OutputToken& token : output.tokens) ids.push_back(token.id);
  const bool ends_with_match = output.finish && output.finish->kind == FinishKind::kStop && !ids.empty() &&
                               output.finish->matched_token == ids.back();
  if (ends_with_match && !request_.no_stop_trim) ids.pop_back();

  text_ += detokenizer_->push(ids);
  if (!detokenizer_->matched_stop()) {
    if (output.finish) text_ += detokenizer_->finish();
    return;
  }
  finish_ = FinishReason{.kind = FinishKind::kStop, .matched_text = detokenizer_->matched_stop()};
  tokens_.resize(std::min(tokens_.size(), static_cast<size_t>(detokenizer_->tokens_used())));
}

void ClientSequence::accept(RequestOutput&& output) {
  fresh_text_begin_ = text_.size();
  fresh_tokens_begin_ = tokens_.size();
  if (finish_) return;

  // A request that goes on after a crash reports again what it found in the prefix cache; the first report counts.
  if (!std::exchange(started_, true)) cached_tokens_ = output.cached_tokens;
  if (!output.prompt_logprobs.empty()) prompt_logprobs_ = std::move(output.prompt_logprobs);
  engine_finished_ = output.finish.has_value();
  *routed_rows_ += output.routed_experts.ids;
  routed_rows_received_ += output.routed_experts.count;

  tokens_.insert(tokens_.end(), output.tokens.begin(), output.tokens.end());
  if (detokenizer_) append_text(output);
  if (output.finish && !finish_) {
    finish_ = FinishReason{.kind = output.finish->kind,
                           .matched_token = output.finish->matched_token,
                           .error = output.finish->error,
                           .message = std::move(output.finish->message)};
  }
  fresh_tokens_begin_ = std::min(fresh_tokens_begin_, tokens_.size());
}

}  // namespace plait
