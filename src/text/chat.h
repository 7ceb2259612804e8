// Chat messages to prompt text, one encoder per model generation, written in C++: nothing of a model folder is
// executed.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <boost/json/value.hpp>

#include "base/error.h"
#include "checkpoint/model_config.h"
#include "text/tokenizer.h"

namespace plait {

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // JSON text
};

struct ChatMessage {
  std::string role;  // system, user, assistant, tool (and developer, read as system)
  std::string content;
  std::string reasoning;  // reasoning_content of an assistant message
  std::vector<ToolCall> tool_calls;
  std::string tool_call_id;
};

struct ChatRequest {
  std::vector<ChatMessage> messages;
  boost::json::array tools;      // OpenAI's form: {"type": "function", "function": {...}}
  std::optional<bool> thinking;  // chat_template_kwargs.thinking
  bool add_generation_prompt = true;
  bool continue_final_message = false;  // the last assistant message is a prefix to continue
};

enum class ChatFormat { kDeepseekV2, kDeepseekV25, kDeepseekV3, kDeepseekR1, kDeepseekV31, kKimiK2 };

// --chat-template's words: deepseek-v2, deepseek-v2.5, deepseek-v3, deepseek-r1, deepseek-v3.1, kimi-k2. kInvalid lists
// them.
Result<ChatFormat> parse_chat_format(std::string_view word);
std::string_view name_of(ChatFormat format);

// Picks the format from the checkpoint: model family, and the marks that the template text and the vocabulary carry.
ChatFormat detect_chat_format(const ModelConfig& config, const Tokenizer& tokenizer);

// The prompt, BOS included where the format has one: encode it with add_special_tokens = false. kInvalid names the
// offending message
// ("messages[3]: role 'tool' needs ...").
Result<std::string> encode_chat(ChatFormat format, const ChatRequest& request, const Tokenizer& tokenizer);

}  // namespace plait
