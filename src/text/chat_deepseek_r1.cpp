// DeepSeek-R1: as V3, but a reply always begins inside a thought.
//   BOS {system} <｜User｜>{user} <｜Assistant｜>{assistant} EOS ... <｜Assistant｜><think>\n
#include "text/chat_formats.h"

namespace plait {

Result<std::string> encode_deepseek_r1(const ChatRequest& request, const Tokenizer& tokenizer) {
  return encode_role_token_chat(request, tokenizer,
                                {.system = system_text(request, tokenizer), .reply_begin = "<｜Assistant｜><think>\n"});
}

}  // namespace plait
