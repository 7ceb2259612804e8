// What /v1/completions and /v1/chat/completions share: the model's name, stream options, usage, finish reasons.
#pragma once

#include <string>
#include <string_view>

#include "server/api_context.h"
#include "server/api_error.h"
#include "server/generation_request.h"
#include "server/request_fields.h"
#include "server/routed_experts.h"

namespace plait {

// 404 "model_not_found" unless the request names the served model, "default", or none.
ApiStatus check_model(const ApiContext& context, RequestFields& fields);

struct StreamOptions {
  bool stream = false;
  bool usage_at_end = false;  // stream_options.include_usage
  bool usage_always = false;  // stream_options.continuous_usage_stats
};
StreamOptions read_stream_options(RequestFields& fields);

// Refuses what would change the answer's meaning and is not served: response_format other than text, lora_path, ...
void refuse_unserved_openai_fields(RequestFields& fields);

// The id of the answer, which is also the rid to abort it by: the request's own "rid", or "<prefix>-<drawn>".
std::string read_answer_id(const ApiContext& context, RequestFields& fields, std::string_view prefix);

// The fields that every answer and event of one request begins with: id, object, created, model.
std::string answer_head(std::string_view id, std::string_view object, const ApiContext& context);

// {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"}; a prompt counts once for all its
// samples.
void append_usage(std::string& out, Sequences sequences);
// ,"usage":{...} where an event has to carry it: always, or null until the end, or not at all.
void append_event_usage(std::string& out, const StreamOptions& options, Sequences sequences);
bool has_routed_experts(const ClientSequence& sequence);
// ,"sglext":{"routed_experts":...} if the request asks for them and they are complete. SGLang has one at the level of
// the answer, in streams in an event without choices; it is the first choice's. Others carry theirs themselves.
void append_sglext(AnswerText& out, const ApiContext& context, RoutedExpertsFormat format,
                   const ClientSequence& sequence);
// What follows the last choice of a stream: the first choice's "sglext", then usage at the end.
void append_end_events(std::string_view head, const ApiContext& context, const StreamOptions& options,
                       RoutedExpertsFormat format, Sequences sequences, AnswerText& events);
// "finish_reason":...,"matched_stop":... (the latter as SGLang adds it)
void append_finish(std::string& out, const ClientSequence& sequence);

}  // namespace plait
