// DeepSeek-V2(-Lite)-Chat: plain text roles.
//   BOS {system}\n\n User: {user}\n\n Assistant: {assistant} EOS ... Assistant:
#include "text/chat_formats.h"

namespace plait {

Result<std::string> encode_deepseek_v2(const ChatRequest& request, const Tokenizer& tokenizer) {
  std::string prompt = bos_text(tokenizer);
  for (const ChatMessage& message : request.messages) {
    if (message.role == "system") {
      prompt += message.content + "\n\n";
    } else if (message.role == "user") {
      prompt += "User: " + message.content + "\n\n";
    } else {
      prompt += "Assistant: " + message.content;
      if (!is_continued(request, message)) prompt += eos_text(tokenizer);
    }
  }
  if (request.add_generation_prompt && !request.continue_final_message) prompt += "Assistant:";
  return prompt;
}

}  // namespace plait
