#include "server/native_format.h"

#include "server/json_text.h"

namespace plait {
namespace {

// The growing parts of one answer as JSON text, so that an event that repeats everything so far is a copy and not a new
// serialisation.
struct Parts {
  std::string text;
  std::string output_ids;
  std::string input_logprobs, input_top, input_requested;
  std::string output_logprobs, output_top, output_requested;
};

void comma(std::string& list) {
  if (!list.empty()) list += ',';
}

class NativeFormat : public ResponseFormat {
 public:
  NativeFormat(const ApiContext& context, NativeFormatOptions options) : context_(context), options_(options) {}

  void stream_update(Sequences sequences, size_t index, AnswerText& events) override {
    const ClientSequence& sequence = *sequences[index];
    if (sequence.fresh_tokens().empty() && sequence.fresh_text().empty() && !sequence.finish()) return;
    parts_.resize(sequences.size());
    prompt_done_.resize(sequences.size());
    Parts& parts = parts_[index];
    if (options_.incremental) parts = {};
    if (!prompt_done_[index]) append_prompt(sequence, parts);
    prompt_done_[index] = true;
    append_output(sequence, sequence.fresh_text(), sequence.fresh_tokens(), parts);
    event_.clear();
    append_answer(sequence, parts, options_.list ? std::optional<size_t>(index) : std::nullopt, event_);
    append_event(events, std::move(event_));
  }

  void stream_end(Sequences, AnswerText&) override {}

  AnswerText body(Sequences sequences) override {
    AnswerText out;
    if (options_.list) out.text += '[';
    Separator separator;
    for (const auto& sequence : sequences) {
      Parts parts;
      append_prompt(*sequence, parts);
      append_output(*sequence, sequence->text(), sequence->tokens(), parts);
      separator(out.text);
      append_answer(*sequence, parts, std::nullopt, out);
    }
    if (options_.list) out.text += ']';
    return out;
  }

 private:
  // [logprob, id, text or null]
  void append_triple(std::string& out, std::optional<double> logprob, int32_t id) const {
    out += '[';
    if (logprob) {
      append_logprob(out, *logprob);
    } else {
      out += "null";
    }
    fmt::format_to(std::back_inserter(out), ",{},", id);
    if (options_.logprob_text && context_.tokenizer != nullptr) {
      append_quoted(out, token_text(context_.tokenizer, id));
    } else {
      out += "null";
    }
    out += ']';
  }

  void append_alternatives(std::string& out, const std::vector<TokenLogprob>& alternatives) const {
    comma(out);
    if (alternatives.empty()) {
      out += "null";
      return;
    }
    out += '[';
    Separator separator;
    for (const TokenLogprob& alternative : alternatives) {
      separator(out);
      append_triple(out, alternative.logprob, alternative.id);
    }
    out += ']';
  }

  void append_prompt(const ClientSequence& sequence, Parts& parts) const {
    const Request& request = sequence.request().request;
    for (const PromptLogprob& position : sequence.prompt_logprobs()) {
      comma(parts.input_logprobs);
      append_triple(parts.input_logprobs, position.logprob, position.id);
      if (request.top_logprobs > 0) append_alternatives(parts.input_top, position.top);
      if (!request.logprob_ids.empty()) append_alternatives(parts.input_requested, position.requested);
    }
  }

  void append_output(const ClientSequence& sequence, std::string_view text, std::span<const OutputToken> tokens,
                     Parts& parts) const {
    const Request& request = sequence.request().request;
    append_escaped(parts.text, text);
    for (const OutputToken& token : tokens) {
      comma(parts.output_ids);
      fmt::format_to(std::back_inserter(parts.output_ids), "{}", token.id);
      if (!request.return_logprob) continue;
      comma(parts.output_logprobs);
      append_triple(parts.output_logprobs, token.logprob, token.id);
      if (request.top_logprobs > 0) append_alternatives(parts.output_top, token.top);
      if (!request.logprob_ids.empty()) append_alternatives(parts.output_requested, token.requested);
    }
  }

  static void append_finish_reason(const ClientSequence& sequence, std::string& out) {
    if (!sequence.finish()) {
      out += "null";
      return;
    }
    const FinishReason& finish = *sequence.finish();
    switch (finish.kind) {
      case FinishKind::kStop:
        out += R"({"type":"stop","matched":)";
        if (finish.matched_text) {
          append_quoted(out, *finish.matched_text);
        } else if (finish.matched_token) {
          fmt::format_to(std::back_inserter(out), "{}", *finish.matched_token);
        } else {
          out += "null";
        }
        break;
      case FinishKind::kLength:
        fmt::format_to(std::back_inserter(out), R"({{"type":"length","length":{})", sequence.tokens().size());
        break;
      case FinishKind::kAbort:
        out += R"({"type":"abort","message":)";
        append_quoted(out, finish.message);
        break;
    }
    out += '}';
  }

  void append_answer(const ClientSequence& sequence, const Parts& parts, std::optional<size_t> index,
                     AnswerText& answer) const {
    std::string& out = answer.text;
    out += '{';
    if (context_.tokenizer != nullptr) {
      out += R"("text":")";
      out += parts.text;
      out += R"(",)";
    }
    out += R"("output_ids":[)";
    out += parts.output_ids;
    out += R"(],"meta_info":{"id":)";
    append_quoted(out, sequence.request().rid);
    out += R"(,"finish_reason":)";
    append_finish_reason(sequence, out);
    fmt::format_to(
        std::back_inserter(out),
        R"(,"prompt_tokens":{},"weight_version":"default","completion_tokens":{},"cached_tokens":{},"e2e_latency":{:.6f})",
        sequence.prompt_tokens(), sequence.tokens().size(), sequence.cached_tokens(),
        sequence.seconds_since_arrival(ClientSequence::Clock::now()));
    append_logprob_lists(sequence.request().request, parts, out);
    if (sequence.finish() && sequence.request().request.return_routed_experts) {
      out += ',';
      append_routed_experts(answer, context_, options_.experts, sequence);
    }
    out += '}';
    if (index) fmt::format_to(std::back_inserter(out), R"(,"index":{})", *index);
    out += '}';
  }

  static void append_logprob_lists(const Request& request, const Parts& parts, std::string& out) {
    if (!request.return_logprob) return;
    const auto list = [&](std::string_view name, const std::string& elements) {
      fmt::format_to(std::back_inserter(out), R"(,"{}":[)", name);
      out += elements;
      out += ']';
    };
    list("input_token_logprobs", parts.input_logprobs);
    list("output_token_logprobs", parts.output_logprobs);
    if (request.top_logprobs > 0) {
      list("input_top_logprobs", parts.input_top);
      list("output_top_logprobs", parts.output_top);
    }
    if (!request.logprob_ids.empty()) {
      list("input_token_ids_logprobs", parts.input_requested);
      list("output_token_ids_logprobs", parts.output_requested);
    }
  }

  const ApiContext& context_;
  NativeFormatOptions options_;
  std::vector<Parts> parts_;  // of each sequence of a stream
  std::vector<bool> prompt_done_;
  AnswerText event_;
};

}  // namespace

std::unique_ptr<ResponseFormat> make_native_format(const ApiContext& context, NativeFormatOptions options) {
  return std::make_unique<NativeFormat>(context, options);
}

}  // namespace plait
