#include "server/openai_common.h"

#include "server/json_text.h"

namespace plait {
namespace {

constexpr size_t kMostModalities = 16;
constexpr size_t kMostModalityBytes = 64;

struct RefusedField {
  std::string_view name;
  std::string_view why;
};
constexpr RefusedField kRefused[] = {
    {"lora_path", "adapters are not part of this version"},
    {"session_params", "sessions are not part of this version"},
    {"return_hidden_states", "hidden states do not leave the engine in this version"},
    {"extra_key", "the prefix cache has one name space in this version"},
    {"cache_salt", "the prefix cache has one name space in this version"},
    {"bootstrap_host", "prefill and decode run in one engine in this version"},
    {"bootstrap_port", "prefill and decode run in one engine in this version"},
    {"bootstrap_room", "prefill and decode run in one engine in this version"},
};

std::string_view finish_word(FinishKind kind) {
  switch (kind) {
    case FinishKind::kStop:
      return "stop";
    case FinishKind::kLength:
      return "length";
    case FinishKind::kAbort:
      break;
  }
  return "abort";
}

}  // namespace

ApiStatus check_model(const ApiContext& context, RequestFields& fields) {
  const std::optional<std::string> model = fields.text("model");
  if (!model || *model == context.served_model_name || *model == "default") return {};
  constexpr size_t kShown = 128;
  ApiError error = bad_request(
      fmt::format("The model '{}' does not exist here; GET /v1/models lists what does.", model->substr(0, kShown)),
      "model", "model_not_found");
  error.status = 404;
  return error;
}

StreamOptions read_stream_options(RequestFields& fields) {
  StreamOptions options{.stream = fields.boolean("stream").value_or(false)};
  const boost::json::object* object = fields.object("stream_options");
  if (object == nullptr) return options;
  if (!options.stream) fields.fail("stream_options", "is only allowed with stream");
  RequestFields inner(*object, fields.path_of("stream_options"));
  options.usage_at_end = inner.boolean("include_usage").value_or(false);
  options.usage_always = inner.boolean("continuous_usage_stats").value_or(false);
  fields.absorb(inner);
  return options;
}

void refuse_unserved_openai_fields(RequestFields& fields) {
  for (const RefusedField& refused : kRefused) fields.refuse(refused.name, refused.why);
  for (const std::string& modality : fields.texts("modalities", kMostModalities, kMostModalityBytes)) {
    if (modality != "text") fields.fail("modalities", "must be [\"text\"]: the models served here write nothing else");
  }
  const boost::json::object* format = fields.object("response_format");
  if (format == nullptr) return;
  RequestFields inner(*format, fields.path_of("response_format"));
  const std::optional<std::string> type = inner.text("type");
  fields.absorb(inner);
  if (type != "text") fields.refuse("response_format", "constrained decoding is not part of this version");
}

std::string read_answer_id(const ApiContext& context, RequestFields& fields, std::string_view prefix) {
  const std::optional<std::string> rid = fields.text("rid", context.limits.rid_bytes);
  if (rid && !rid->empty()) return *rid;
  return fmt::format("{}-{:016x}{:016x}", prefix, draw_seed(), draw_seed());
}

std::string answer_head(std::string_view id, std::string_view object, const ApiContext& context) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  std::string head = R"("id":)";
  append_quoted(head, id);
  fmt::format_to(std::back_inserter(head), R"(,"object":"{}","created":{},"model":)", object,
                 std::chrono::duration_cast<std::chrono::seconds>(now).count());
  append_quoted(head, context.served_model_name);
  return head;
}

void append_usage(std::string& out, Sequences sequences) {
  size_t prompt = 0;
  size_t completion = 0;
  int64_t cached = 0;
  std::optional<size_t> counted_prompt;
  for (const auto& sequence : sequences) {
    completion += sequence->tokens().size();
    if (counted_prompt == sequence->request().prompt_index) continue;
    counted_prompt = sequence->request().prompt_index;
    prompt += sequence->prompt_tokens();
    cached += sequence->cached_tokens();
  }
  fmt::format_to(
      std::back_inserter(out),
      R"({{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{},"prompt_tokens_details":{{"cached_tokens":{}}}}})",
      prompt, completion, prompt + completion, cached);
}

void append_event_usage(std::string& out, const StreamOptions& options, Sequences sequences) {
  if (options.usage_always) {
    out += R"(,"usage":)";
    append_usage(out, sequences);
  } else if (options.usage_at_end) {
    out += R"(,"usage":null)";
  }
}

bool has_routed_experts(const ClientSequence& sequence) {
  return sequence.finish() && sequence.request().request.return_routed_experts;
}

void append_sglext(AnswerText& out, const ApiContext& context, RoutedExpertsFormat format,
                   const ClientSequence& sequence) {
  if (!has_routed_experts(sequence)) return;
  out.text += R"(,"sglext":{)";
  append_routed_experts(out, context, format, sequence);
  out.text += '}';
}

void append_end_events(std::string_view head, const ApiContext& context, const StreamOptions& options,
                       RoutedExpertsFormat format, Sequences sequences, AnswerText& events) {
  const auto begin = [&] {
    AnswerText event;
    event.text = fmt::format(R"({{{},"choices":[])", head);
    return event;
  };
  if (has_routed_experts(*sequences.front())) {
    AnswerText event = begin();
    append_sglext(event, context, format, *sequences.front());
    event.text += '}';
    append_event(events, std::move(event));
  }
  if (!options.usage_at_end) return;
  AnswerText event = begin();
  event.text += R"(,"usage":)";
  append_usage(event.text, sequences);
  event.text += '}';
  append_event(events, std::move(event));
}

void append_finish(std::string& out, const ClientSequence& sequence) {
  if (!sequence.finish()) {
    out += R"("finish_reason":null)";
    return;
  }
  const FinishReason& finish = *sequence.finish();
  fmt::format_to(std::back_inserter(out), R"("finish_reason":"{}","matched_stop":)", finish_word(finish.kind));
  if (finish.matched_text) {
    append_quoted(out, *finish.matched_text);
  } else if (finish.matched_token) {
    fmt::format_to(std::back_inserter(out), "{}", *finish.matched_token);
  } else {
    out += "null";
  }
}

}  // namespace plait
