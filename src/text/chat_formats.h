// The encoders behind encode_chat, one file each, and what they share. They get requests that chat.cpp has checked:
// known roles ("developer" became "system"), tool results behind tool calls, a last assistant message if it is to be
// continued.
//
// Pure functions; safe from any thread.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "text/chat.h"
#include "text/tokenizer.h"

namespace plait {

Result<std::string> encode_deepseek_v2(const ChatRequest& request, const Tokenizer& tokenizer);
Result<std::string> encode_deepseek_v25(const ChatRequest& request, const Tokenizer& tokenizer);
Result<std::string> encode_deepseek_v3(const ChatRequest& request, const Tokenizer& tokenizer);
Result<std::string> encode_deepseek_r1(const ChatRequest& request, const Tokenizer& tokenizer);
Result<std::string> encode_deepseek_v31(const ChatRequest& request, const Tokenizer& tokenizer);
Result<std::string> encode_kimi_k2(const ChatRequest& request, const Tokenizer& tokenizer);

// Text of the special tokens of DeepSeek's vocabularies. BOS and EOS are the tokenizer's own, where it names them.
inline constexpr std::string_view kUserToken = "<｜User｜>";
inline constexpr std::string_view kAssistantToken = "<｜Assistant｜>";
inline constexpr std::string_view kToolCallsBegin = "<｜tool▁calls▁begin｜>";
inline constexpr std::string_view kToolCallsEnd = "<｜tool▁calls▁end｜>";
inline constexpr std::string_view kToolCallBegin = "<｜tool▁call▁begin｜>";
inline constexpr std::string_view kToolCallEnd = "<｜tool▁call▁end｜>";
inline constexpr std::string_view kToolSeparator = "<｜tool▁sep｜>";
inline constexpr std::string_view kToolOutputsBegin = "<｜tool▁outputs▁begin｜>";
inline constexpr std::string_view kToolOutputsEnd = "<｜tool▁outputs▁end｜>";
inline constexpr std::string_view kToolOutputBegin = "<｜tool▁output▁begin｜>";
inline constexpr std::string_view kToolOutputEnd = "<｜tool▁output▁end｜>";
inline constexpr std::string_view kThinkBegin = "<think>";
inline constexpr std::string_view kThinkEnd = "</think>";

std::string bos_text(const Tokenizer& tokenizer);
std::string eos_text(const Tokenizer& tokenizer);

// The system messages as one text. Published templates differ in what they do with several; the checkpoint's own text
// says which it is: "ns.system_prompt + '\n\n' + ..." puts a blank line between them, "ns.system_prompt + message..."
// nothing, "ns.system_prompt = message..." keeps the last one only. A blank line where there is no template.
std::string system_text(const ChatRequest& request, const Tokenizer& tokenizer);

// Text behind the last "</think>"; all of it if there is none.
std::string_view after_last_thought(std::string_view content);

// An assistant message that is to be continued: is this the one?
bool is_continued(const ChatRequest& request, const ChatMessage& message);

// Errors name the tool: "tools[1]: ...".
struct ToolFunction {
  std::string_view name, description;
  const boost::json::object* function;  // of the request
};
Result<std::vector<ToolFunction>> tool_functions(const ChatRequest& request);

// V2.5, V3 and R1 write the same turns and differ only in this.
struct RoleTokenStyle {
  std::string system;            // system text, tool declarations included
  std::string_view reply_begin;  // the generation prompt
};
Result<std::string> encode_role_token_chat(const ChatRequest& request, const Tokenizer& tokenizer,
                                           const RoleTokenStyle& style);

}  // namespace plait
