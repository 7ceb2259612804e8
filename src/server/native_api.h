// SGLang's /generate: its request fields, and the shape of its answers. Parsing is a pure function of body and context.
#pragma once

#include <boost/json/object.hpp>

#include "server/api_context.h"
#include "server/api_error.h"
#include "server/generation_request.h"

namespace plait {

// Fields that this version does not serve are refused by name; unknown ones are ignored, as SGLang does. `context`
// outlives the result.
ApiResult<GenerationRequest> parse_generate(const ApiContext& context, const boost::json::object& body);

}  // namespace plait
