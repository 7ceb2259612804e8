// OpenAI's /v1/completions. Parsing is a pure function of body and context.
#pragma once

#include <boost/json/object.hpp>

#include "server/api_context.h"
#include "server/api_error.h"
#include "server/generation_request.h"

namespace plait {

// `context` outlives the result.
ApiResult<GenerationRequest> parse_completions(const ApiContext& context, const boost::json::object& body);

}  // namespace plait
