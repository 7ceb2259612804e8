#include "text/chat.h"

#include <boost/json/array.hpp>

#include "text/chat_formats.h"

namespace plait {
namespace {

struct FormatInfo {
  ChatFormat format;
  std::string_view word;
  Result<std::string> (*encode)(const ChatRequest&, const Tokenizer&);
  bool tool_calls;         // assistant messages with calls, and tool messages
  bool tool_declarations;  // request.tools
};

constexpr FormatInfo kFormats[] = {
    {ChatFormat::kDeepseekV2, "deepseek-v2", encode_deepseek_v2, false, false},
    {ChatFormat::kDeepseekV25, "deepseek-v2.5", encode_deepseek_v25, true, true},
    {ChatFormat::kDeepseekV3, "deepseek-v3", encode_deepseek_v3, true, false},
    {ChatFormat::kDeepseekR1, "deepseek-r1", encode_deepseek_r1, true, false},
    {ChatFormat::kDeepseekV31, "deepseek-v3.1", encode_deepseek_v31, true, true},
    {ChatFormat::kKimiK2, "kimi-k2", encode_kimi_k2, true, true},
};

constexpr bool in_order_of_the_enum() {
  for (size_t i = 0; i < std::size(kFormats); ++i) {
    if (static_cast<size_t>(kFormats[i].format) != i) return false;
  }
  return true;
}
static_assert(in_order_of_the_enum());

const FormatInfo& info_of(ChatFormat format) {
  return kFormats[static_cast<size_t>(format)];
}

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

Status check_message(const FormatInfo& format, const std::vector<ChatMessage>& messages, size_t index) {
  const ChatMessage& message = messages[index];
  const auto wrong = [&](std::string_view what) { return invalid(fmt::format("messages[{}]: {}", index, what)); };
  constexpr std::string_view kRoles[] = {"system", "user", "assistant", "tool"};
  if (std::find(std::begin(kRoles), std::end(kRoles), message.role) == std::end(kRoles))
    return wrong(fmt::format("role '{}' is none of system, developer, user, assistant, tool", message.role));
  if (!message.tool_calls.empty() && message.role != "assistant") return wrong("only role 'assistant' has tool_calls");
  if (!format.tool_calls && (!message.tool_calls.empty() || message.role == "tool"))
    return wrong(fmt::format("the chat format {} has no tool calls", format.word));
  for (size_t i = 0; i < message.tool_calls.size(); ++i) {
    if (message.tool_calls[i].name.empty()) return wrong(fmt::format("tool_calls[{}] needs function.name", i));
  }
  if (message.role == "tool") {
    const bool answers = index > 0 && (messages[index - 1].role == "tool" || !messages[index - 1].tool_calls.empty());
    if (!answers) return wrong("role 'tool' needs an assistant message with tool_calls before it");
    if (format.format == ChatFormat::kKimiK2 && message.tool_call_id.empty())
      return wrong("role 'tool' needs a tool_call_id");
  }
  return {};
}

Status check_request(const FormatInfo& format, const ChatRequest& request) {
  if (request.messages.empty()) return invalid("messages: at least one is needed");
  for (size_t i = 0; i < request.messages.size(); ++i)
    PLAIT_RETURN_IF_ERROR(check_message(format, request.messages, i));
  if (!request.tools.empty() && !format.tool_declarations)
    return invalid(
        fmt::format("tools: the chat format {} cannot declare tools; describe them in a system message", format.word));
  const ChatMessage& last = request.messages.back();
  if (request.continue_final_message && (last.role != "assistant" || !last.tool_calls.empty()))
    return invalid(fmt::format("messages[{}]: continue_final_message needs an assistant message without tool_calls",
                               request.messages.size() - 1));
  return {};
}

}  // namespace

Result<ChatFormat> parse_chat_format(std::string_view word) {
  std::vector<std::string_view> words;
  for (const FormatInfo& info : kFormats) {
    if (info.word == word) return info.format;
    words.push_back(info.word);
  }
  return invalid(fmt::format("chat template \"{}\" is unknown; known are {}", word, fmt::join(words, ", ")));
}

std::string_view name_of(ChatFormat format) {
  return info_of(format).word;
}

ChatFormat detect_chat_format(const ModelConfig& config, const Tokenizer& tokenizer) {
  const std::string_view text = tokenizer.chat_template();
  if (config.family == Family::kKimiK2 || tokenizer.id_of("<|im_middle|>")) return ChatFormat::kKimiK2;
  if (contains(text, "'User: '") || !tokenizer.id_of(kUserToken)) return ChatFormat::kDeepseekV2;
  if (config.family == Family::kDeepseekV2) return ChatFormat::kDeepseekV25;
  if (contains(text, "thinking is defined")) return ChatFormat::kDeepseekV31;
  if (contains(text, "<｜Assistant｜><think>")) return ChatFormat::kDeepseekR1;
  return ChatFormat::kDeepseekV3;
}

Result<std::string> encode_chat(ChatFormat format, const ChatRequest& request, const Tokenizer& tokenizer) {
  ChatRequest checked = request;
  for (ChatMessage& message : checked.messages) {
    if (message.role == "developer") message.role = "system";
  }
  PLAIT_RETURN_IF_ERROR(check_request(info_of(format), checked));
  return info_of(format).encode(checked, tokenizer);
}

// --- what the formats share ---

std::string bos_text(const Tokenizer& tokenizer) {
  return std::string(tokenizer.token_bytes(tokenizer.bos_id().value_or(-1), false));
}

std::string eos_text(const Tokenizer& tokenizer) {
  return std::string(tokenizer.token_bytes(tokenizer.eos_id().value_or(-1), false));
}

std::string system_text(const ChatRequest& request, const Tokenizer& tokenizer) {
  const std::string_view text = tokenizer.chat_template();
  const bool blank_line = contains(text, "ns.system_prompt + '");
  const bool concatenated = !blank_line && contains(text, "ns.system_prompt + message");
  const bool last_only = !blank_line && !concatenated && contains(text, "ns.system_prompt = message");
  std::string system;
  bool first = true;
  for (const ChatMessage& message : request.messages) {
    if (message.role != "system") continue;
    if (last_only) system.clear();
    if (!std::exchange(first, false) && !concatenated && !last_only) system += "\n\n";
    system += message.content;
  }
  return system;
}

std::string_view after_last_thought(std::string_view content) {
  const size_t end = content.rfind(kThinkEnd);
  return end == std::string_view::npos ? content : content.substr(end + kThinkEnd.size());
}

bool is_continued(const ChatRequest& request, const ChatMessage& message) {
  return request.continue_final_message && &message == &request.messages.back();
}

Result<std::vector<ToolFunction>> tool_functions(const ChatRequest& request) {
  const auto text_of = [](const boost::json::object& object, std::string_view key) -> std::string_view {
    const boost::json::value* value = object.if_contains(key);
    const boost::json::string* text = value ? value->if_string() : nullptr;
    return text ? std::string_view(text->data(), text->size()) : std::string_view();
  };
  std::vector<ToolFunction> tools;
  for (size_t i = 0; i < request.tools.size(); ++i) {
    const boost::json::object* tool = request.tools[i].if_object();
    const boost::json::value* function = tool ? tool->if_contains("function") : nullptr;
    const boost::json::object* object = function ? function->if_object() : nullptr;
    if (!object || text_of(*object, "name").empty())
      return invalid(
          fmt::format("tools[{}]: {{\"type\": \"function\", \"function\": {{\"name\": ...}}}} is expected", i));
    tools.push_back({text_of(*object, "name"), text_of(*object, "description"), object});
  }
  return tools;
}

}  // namespace plait
