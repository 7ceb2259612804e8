// DeepSeek-V3.1: one model that thinks or not.
//   BOS {system} <｜User｜>{user} <｜Assistant｜></think>{assistant} EOS ... <｜Assistant｜> (<think> | </think>)
// Tool calls and results have no separators, and results open the next assistant turn:
//   <｜tool▁calls▁begin｜> (<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>)+
//   <｜tool▁calls▁end｜> EOS
//   (<｜tool▁output▁begin｜>{text}<｜tool▁output▁end｜>)+ {assistant} EOS
#include "text/chat_formats.h"
#include "text/python_json.h"

namespace plait {
namespace {

// The model's published description of tools, which goes behind the system text.
constexpr std::string_view kToolsHead = "\n\n## Tools\nYou have access to the following tools:\n";
constexpr std::string_view kToolsTail =
    "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>"
    "{{additional_tool_calls}}<｜tool▁calls▁end｜>\n\n"
    "Where:\n\n"
    "- `tool_call_name` must be an exact match to one of the available tools\n"
    "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
    "- For multiple tool calls, chain them directly without separators or spaces\n";

Result<std::string> tools_text(const ChatRequest& request) {
  PLAIT_ASSIGN_OR_RETURN(const std::vector<ToolFunction> tools, tool_functions(request));
  std::string text(kToolsHead);
  for (const ToolFunction& tool : tools) {
    const boost::json::value* parameters = tool.function->if_contains("parameters");
    text += fmt::format("\n### {}\nDescription: {}\n\nParameters: {}\n", tool.name, tool.description,
                        parameters ? python_json(*parameters) : "{}");
  }
  return text.append(kToolsTail);
}

// Text behind the first "</think>", unlike V3's.
std::string_view after_first_thought(std::string_view content) {
  const size_t end = content.find(kThinkEnd);
  return end == std::string_view::npos ? content : content.substr(end + kThinkEnd.size());
}

class V31Writer {
 public:
  V31Writer(const ChatRequest& request, const Tokenizer& tokenizer, std::string system)
      : request_(request), eos_(eos_text(tokenizer)), prompt_(bos_text(tokenizer) + std::move(system)) {}

  std::string write() {
    for (const ChatMessage& message : request_.messages) {
      if (message.role == "user") {
        prompt_.append(kUserToken).append(message.content);
      } else if (message.role == "assistant") {
        write_assistant(message);
      } else if (message.role == "tool") {
        prompt_.append(kToolOutputBegin).append(message.content).append(kToolOutputEnd);
      }
      last_role_ = message.role == "system" ? last_role_ : message.role;
    }
    if (request_.add_generation_prompt && !request_.continue_final_message && last_role_ == "user")
      prompt_.append(kAssistantToken).append(thinking() ? kThinkBegin : kThinkEnd);
    return std::move(prompt_);
  }

 private:
  bool thinking() const { return request_.thinking.value_or(false); }

  void write_assistant(const ChatMessage& message) {
    const bool continued = is_continued(request_, message);
    const bool in_thought = continued && (thinking() || !message.reasoning.empty());
    if (last_role_ == "user") prompt_.append(kAssistantToken).append(in_thought ? kThinkBegin : kThinkEnd);
    if (continued) {
      prompt_ += message.reasoning;
      if (!message.reasoning.empty() && !message.content.empty()) prompt_ += kThinkEnd;
      prompt_ += message.content;
      return;
    }
    const bool whole = last_role_ == "tool" || !message.tool_calls.empty();
    prompt_ += whole ? std::string_view(message.content) : after_first_thought(message.content);
    if (!message.tool_calls.empty()) write_calls(message.tool_calls);
    prompt_ += eos_;
  }

  void write_calls(const std::vector<ToolCall>& calls) {
    prompt_ += kToolCallsBegin;
    for (const ToolCall& call : calls)
      prompt_ += fmt::format("{}{}{}{}{}", kToolCallBegin, call.name, kToolSeparator, call.arguments, kToolCallEnd);
    prompt_ += kToolCallsEnd;
  }

  const ChatRequest& request_;
  const std::string eos_;
  std::string prompt_;
  std::string_view last_role_;
};

}  // namespace

Result<std::string> encode_deepseek_v31(const ChatRequest& request, const Tokenizer& tokenizer) {
  std::string system = system_text(request, tokenizer);
  if (!request.tools.empty()) {
    PLAIT_ASSIGN_OR_RETURN(const std::string tools, tools_text(request));
    system += tools;
  }
  return V31Writer(request, tokenizer, std::move(system)).write();
}

}  // namespace plait
