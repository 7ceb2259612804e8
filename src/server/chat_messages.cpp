#include "server/chat_messages.h"

#include <boost/json/serialize.hpp>

namespace plait {
namespace {

namespace json = boost::json;

constexpr std::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool"};
constexpr size_t kMaxNameBytes = 256;

// content is a string, or an array of {"type": "text", "text": ...}.
std::string read_content(RequestFields& message) {
  const json::value* content = message.value("content");
  if (content == nullptr) return {};
  if (!content->is_array()) return message.text("content").value_or("");
  std::string text;
  for (size_t i = 0; i < content->get_array().size(); ++i) {
    const json::value& element = content->get_array()[i];
    const std::string path = fmt::format("content[{}]", i);
    if (!element.is_object()) {
      message.fail(path, "must be an object with type and text");
      return {};
    }
    RequestFields part(element.get_object(), message.path_of(path));
    const std::optional<std::string> type = part.text("type", kMaxNameBytes);
    if (type && *type != "text") {
      part.fail("type", "must be \"text\": the models served here read nothing else");
    } else if (part.value("text") == nullptr) {
      part.fail("text", "is missing");
    }
    text += part.text("text").value_or("");
    message.absorb(part);
  }
  return text;
}

ToolCall read_tool_call(const json::value& element, std::string path, RequestFields& message) {
  ToolCall call;
  if (!element.is_object()) {
    message.fail("tool_calls", "must be an array of objects");
    return call;
  }
  RequestFields fields(element.get_object(), std::move(path));
  call.id = fields.text("id", kMaxNameBytes).value_or("");
  if (const json::object* function = fields.object("function")) {
    RequestFields inner(*function, fields.path_of("function"));
    call.name = inner.text("name", kMaxNameBytes).value_or("");
    if (call.name.empty()) inner.fail("name", "is missing");
    // some clients send the arguments as an object instead of as text
    const json::value* arguments = inner.value("arguments");
    call.arguments = arguments != nullptr && arguments->is_object() ? json::serialize(*arguments)
                                                                    : inner.text("arguments").value_or("{}");
    fields.absorb(inner);
  } else {
    fields.fail("function", "is missing");
  }
  message.absorb(fields);
  return call;
}

ChatMessage read_message(const json::value& element, size_t index, RequestFields& request) {
  ChatMessage message;
  const std::string path = fmt::format("messages[{}]", index);
  if (!element.is_object()) {
    request.fail(path, "must be an object");
    return message;
  }
  RequestFields fields(element.get_object(), path);
  message.role = fields.text("role", kMaxNameBytes).value_or("");
  if (std::find(std::begin(kRoles), std::end(kRoles), message.role) == std::end(kRoles)) {
    fields.fail("role", fmt::format("must be one of {}", fmt::join(kRoles, ", ")));
  }
  message.content = read_content(fields);
  message.reasoning = fields.text("reasoning_content").value_or("");
  message.tool_call_id = fields.text("tool_call_id", kMaxNameBytes).value_or("");
  if (const json::array* calls = fields.array("tool_calls")) {
    for (size_t i = 0; i < calls->size(); ++i) {
      message.tool_calls.push_back(
          read_tool_call((*calls)[i], fields.path_of(fmt::format("tool_calls[{}]", i)), fields));
    }
  }
  const bool may_be_empty = message.role == "assistant";
  if (!may_be_empty && fields.value("content") == nullptr) fields.fail("content", "is missing");
  request.absorb(fields);
  return message;
}

void check_tool(const json::value& tool, size_t index, RequestFields& request) {
  const std::string path = fmt::format("tools[{}]", index);
  if (!tool.is_object()) {
    request.fail(path, "must be an object");
    return;
  }
  RequestFields fields(tool.get_object(), path);
  if (fields.text("type", kMaxNameBytes).value_or("function") != "function") {
    fields.fail("type", "must be \"function\"");
  }
  if (const json::object* function = fields.object("function")) {
    RequestFields inner(*function, fields.path_of("function"));
    if (inner.text("name", kMaxNameBytes).value_or("").empty()) inner.fail("name", "is missing");
    inner.text("description");
    inner.object("parameters");
    fields.absorb(inner);
  } else {
    fields.fail("function", "is missing");
  }
  request.absorb(fields);
}

// "none" hides the tools from the model, "auto" shows them; forcing a call would need constrained decoding.
void read_tools(const ApiContext& context, RequestFields& fields, ChatRequest& request) {
  const json::array* tools = fields.array("tools", context.limits.tools);
  for (size_t i = 0; tools != nullptr && i < tools->size(); ++i) check_tool((*tools)[i], i, fields);
  const json::value* choice = fields.value("tool_choice");
  const bool hidden = choice != nullptr && choice->is_string() && choice->get_string() == "none";
  const bool automatic = choice == nullptr || (choice->is_string() && choice->get_string() == "auto");
  if (!hidden && !automatic) {
    fields.refuse("tool_choice", "only \"none\" and \"auto\" are, as forcing a call needs constrained decoding");
  }
  if (tools != nullptr && !hidden) request.tools = *tools;
}

}  // namespace

ApiResult<ChatRequest> read_chat_request(const ApiContext& context, RequestFields& fields) {
  ChatRequest request;
  const json::array* messages = fields.array("messages");
  PLAIT_RETURN_IF_ERROR(fields.status());
  if (messages == nullptr || messages->empty()) {
    return bad_request("messages must be an array of at least one message.", "messages");
  }
  request.messages.reserve(messages->size());
  for (size_t i = 0; i < messages->size() && !fields.error(); ++i) {
    request.messages.push_back(read_message((*messages)[i], i, fields));
  }
  read_tools(context, fields, request);
  fields.refuse("functions", "it was replaced by tools");
  fields.refuse("function_call", "it was replaced by tool_choice");
  fields.refuse("chat_template", "templates are never taken from a request");
  if (const json::object* arguments = fields.object("chat_template_kwargs")) {
    RequestFields inner(*arguments, fields.path_of("chat_template_kwargs"));
    request.thinking = inner.boolean("thinking");
    if (!request.thinking) request.thinking = inner.boolean("enable_thinking");
    fields.absorb(inner);
  }
  request.continue_final_message = fields.boolean("continue_final_message").value_or(false);
  request.add_generation_prompt = fields.boolean("add_generation_prompt").value_or(!request.continue_final_message);
  PLAIT_RETURN_IF_ERROR(fields.status());
  return request;
}

}  // namespace plait
