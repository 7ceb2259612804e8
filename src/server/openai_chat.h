// OpenAI's /v1/chat/completions. Parsing is a pure function of body and context.
//
// Tools are rendered into the prompt by the chat encoder. The model's answer is returned as it is: calls in it are not
// taken apart into tool_calls.
#pragma once

#include <boost/json/object.hpp>

#include "server/api_context.h"
#include "server/api_error.h"
#include "server/generation_request.h"

namespace plait {

// `context` outlives the result.
ApiResult<GenerationRequest> parse_chat(const ApiContext& context, const boost::json::object& body);

}  // namespace plait
