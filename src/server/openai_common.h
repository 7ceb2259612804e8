// What /v1/completions and /v1/chat/completions share: the model's name, stream options, usage, finish reasons.
#pragma once

#include <string>
#include <string_view>

#include "server/api_context.h"
#include "server/api_error.h"
#include "server/generation_request.h"
#include "server/request_fields.h"

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
// "finish_reason":...,"matched_stop":... (the latter as SGLang adds it)
void append_finish(std::string& out, const ClientSequence& sequence);

}  // namespace plait
