// The messages and tools of a chat request, as the chat encoders take them. Pure functions.
#pragma once

#include "server/api_context.h"
#include "server/api_error.h"
#include "server/request_fields.h"
#include "text/chat.h"

namespace plait {

// Reads messages, tools, tool_choice, chat_template_kwargs, add_generation_prompt and continue_final_message.
ApiResult<ChatRequest> read_chat_request(const ApiContext& context, RequestFields& fields);

}  // namespace plait
