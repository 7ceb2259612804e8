#include "server/openai_chat.h"

#include "server/chat_messages.h"
#include "server/json_text.h"
#include "server/openai_common.h"
#include "server/request_fields.h"
#include "server/sampling_fields.h"

namespace plait {
namespace {

namespace json = boost::json;

struct ChatOptions {
  std::string id;
  StreamOptions stream;
  bool logprobs = false;
  RoutedExpertsFormat experts = RoutedExpertsFormat::kInt32;
};

class ChatFormatter : public ResponseFormat {
 public:
  ChatFormatter(const ApiContext& context, ChatOptions options)
      : context_(context),
        options_(std::move(options)),
        head_(answer_head(options_.id, options_.stream.stream ? "chat.completion.chunk" : "chat.completion", context)) {
  }

  void stream_update(Sequences sequences, size_t index, AnswerText& events) override {
    const ClientSequence& sequence = *sequences[index];
    started_.resize(sequences.size());
    if (!started_[index]) {
      started_[index] = true;
      append_chunk(sequences, index, R"({"role":"assistant","content":""})", {}, false, events);
    }
    if (!sequence.fresh_text().empty() || (options_.logprobs && !sequence.fresh_tokens().empty())) {
      delta_ = R"({"content":)";
      append_quoted(delta_, sequence.fresh_text());
      delta_ += '}';
      append_chunk(sequences, index, delta_, sequence.fresh_tokens(), false, events);
    }
    if (sequence.finish()) append_chunk(sequences, index, "{}", {}, true, events);
  }

  void stream_end(Sequences sequences, AnswerText& events) override {
    append_end_events(head_, context_, options_.stream, options_.experts, sequences, events);
  }

  AnswerText body(Sequences sequences) override {
    AnswerText answer;
    std::string& out = answer.text;
    out = "{" + head_ + R"(,"choices":[)";
    Separator separator;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const ClientSequence& sequence = *sequences[i];
      separator(out);
      fmt::format_to(std::back_inserter(out), R"({{"index":{},"message":{{"role":"assistant","content":)", i);
      append_quoted(out, sequence.text());
      out += R"(,"refusal":null},"logprobs":)";
      append_logprobs(sequence.tokens(), out);
      out += ',';
      append_finish(out, sequence);
      if (i > 0) append_sglext(answer, context_, options_.experts, sequence);
      out += '}';
    }
    out += R"(],"usage":)";
    append_usage(out, sequences);
    append_sglext(answer, context_, options_.experts, *sequences.front());
    out += '}';
    return answer;
  }

 private:
  void append_chunk(Sequences sequences, size_t index, std::string_view delta, std::span<const OutputToken> tokens,
                    bool last, AnswerText& events) {
    event_.clear();
    std::string& out = event_.text;
    out = "{" + head_;
    fmt::format_to(std::back_inserter(out), R"(,"choices":[{{"index":{},"delta":)", index);
    out += delta;
    out += R"(,"logprobs":)";
    if (tokens.empty()) {
      out += "null";
    } else {
      append_logprobs(tokens, out);
    }
    out += ',';
    if (last) {
      append_finish(out, *sequences[index]);
      if (index > 0) append_sglext(event_, context_, options_.experts, *sequences[index]);
    } else {
      out += R"("finish_reason":null)";
    }
    out += "}]";
    append_event_usage(out, options_.stream, sequences);
    out += '}';
    append_event(events, std::move(event_));
  }

  void append_token(int32_t id, double logprob, std::string& out) const {
    out += R"({"token":)";
    append_quoted(out, token_text(context_.tokenizer, id));
    out += R"(,"bytes":[)";
    Separator separator;
    for (const char byte : context_.tokenizer->token_bytes(id, false)) {
      separator(out);
      fmt::format_to(std::back_inserter(out), "{}", static_cast<unsigned char>(byte));
    }
    out += R"(],"logprob":)";
    append_logprob(out, logprob);
  }

  void append_logprobs(std::span<const OutputToken> tokens, std::string& out) const {
    if (!options_.logprobs) {
      out += "null";
      return;
    }
    out += R"({"content":[)";
    Separator separator;
    for (const OutputToken& token : tokens) {
      separator(out);
      append_token(token.id, token.logprob, out);
      out += R"(,"top_logprobs":[)";
      Separator inner;
      for (const TokenLogprob& candidate : token.top) {
        inner(out);
        append_token(candidate.id, candidate.logprob, out);
        out += '}';
      }
      out += "]}";
    }
    out += R"(],"refusal":null})";
  }

  const ApiContext& context_;
  ChatOptions options_;
  std::string head_;
  std::vector<bool> started_;
  AnswerText event_;
  std::string delta_;
};

}  // namespace

ApiResult<GenerationRequest> parse_chat(const ApiContext& context, const json::object& body) {
  if (context.tokenizer == nullptr || !context.chat_format) {
    return bad_request("This server runs with --skip-tokenizer-init: use /generate with input_ids.");
  }
  RequestFields fields(body);
  PLAIT_RETURN_IF_ERROR(check_model(context, fields));
  refuse_unserved_openai_fields(fields);
  fields.refuse("audio", "the models served here write text only");
  ChatOptions options{.id = read_answer_id(context, fields, "chatcmpl"), .stream = read_stream_options(fields)};
  options.logprobs = fields.boolean("logprobs").value_or(false);
  const auto top = fields.integer("top_logprobs", {0, context.limits.openai_top_logprobs});
  if (top && *top > 0 && !options.logprobs) fields.fail("top_logprobs", "needs logprobs to be true");
  const RoutedExpertsChoice experts = read_routed_experts(fields, context);
  options.experts = experts.format;
  const std::optional<size_t> replica = read_replica(context, fields);
  const SamplingChoice choice = read_sampling(fields, SamplingSpelling::kOpenAi, context);
  PLAIT_ASSIGN_OR_RETURN(const ChatRequest chat, read_chat_request(context, fields));

  auto prompt = encode_chat(*context.chat_format, chat, *context.tokenizer);
  if (prompt.has_error()) return bad_request(prompt.error().message, "messages");
  SequenceRequest sequence{.rid = options.id, .replica = replica};
  sequence.request.prompt_ids = context.tokenizer->encode(*prompt, false);
  sequence.request.return_logprob = options.logprobs;
  sequence.request.top_logprobs = static_cast<int32_t>(options.logprobs ? top.value_or(0) : 0);
  apply(experts, sequence.request);
  GenerationRequest generation{.stream = options.stream.stream};
  PLAIT_RETURN_IF_ERROR(add_samples(context, choice, std::nullopt, std::move(sequence), generation));
  generation.format = std::make_unique<ChatFormatter>(context, options);
  return generation;
}

}  // namespace plait
