// DeepSeek-V2.5: role tokens; tools are declared behind the system text.
//   BOS {system} <｜User｜>{user} <｜Assistant｜>{assistant} EOS ... <｜Assistant｜>
#include "text/chat_formats.h"
#include "text/python_json.h"

namespace plait {
namespace {

// As the model's card shows it for one function; further ones follow behind an empty line.
Result<std::string> tools_text(const ChatRequest& request) {
  PLAIT_ASSIGN_OR_RETURN(const std::vector<ToolFunction> tools, tool_functions(request));
  std::string text = "\n\n## Tools\n\n### Function\n\nYou have the following functions available:";
  for (const ToolFunction& tool : tools)
    text += fmt::format("\n\n- `{}`:\n```json\n{}\n```", tool.name, python_json(*tool.function, kIndentedJson));
  return text;
}

}  // namespace

Result<std::string> encode_deepseek_v25(const ChatRequest& request, const Tokenizer& tokenizer) {
  RoleTokenStyle style{.system = system_text(request, tokenizer), .reply_begin = kAssistantToken};
  if (!request.tools.empty()) {
    PLAIT_ASSIGN_OR_RETURN(const std::string tools, tools_text(request));
    style.system += tools;
  }
  return encode_role_token_chat(request, tokenizer, style);
}

}  // namespace plait
