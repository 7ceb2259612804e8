// DeepSeek-V3.
//   BOS {system} <｜User｜>{user} <｜Assistant｜>{assistant} EOS ... <｜Assistant｜>
#include "text/chat_formats.h"

namespace plait {

Result<std::string> encode_deepseek_v3(const ChatRequest& request, const Tokenizer& tokenizer) {
  return encode_role_token_chat(request, tokenizer,
                                {.system = system_text(request, tokenizer), .reply_begin = kAssistantToken});
}

}  // namespace plait
