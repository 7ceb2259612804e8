// The turns of V2.5, V3 and R1. Tool calls belong to an assistant turn:
//   <｜tool▁calls▁begin｜>
//   <｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>
//   (\n <｜tool▁call▁begin｜>...)* <｜tool▁calls▁end｜> EOS
// and their results open the next one, which therefore has no role token:
//   <｜tool▁outputs▁begin｜> <｜tool▁output▁begin｜>{text}<｜tool▁output▁end｜> (\n ...)*
//   <｜tool▁outputs▁end｜>{assistant} EOS
#include "text/chat_formats.h"

namespace plait {
namespace {

bool cuts_thoughts(const Tokenizer& tokenizer) {
  const std::string_view text = tokenizer.chat_template();
  return text.empty() || text.find(kThinkEnd) != std::string_view::npos;
}

std::string_view output_separator(const Tokenizer& tokenizer) {
  const std::string_view text = tokenizer.chat_template();
  // a quoted literal that begins with the token itself
  const bool plain = text.find(fmt::format("'{}", kToolOutputBegin)) != std::string_view::npos;
  return plain ? "" : "\n";
}

class RoleTokenWriter {
 public:
  RoleTokenWriter(const ChatRequest& request, const Tokenizer& tokenizer, const RoleTokenStyle& style)
      : request_(request),
        eos_(eos_text(tokenizer)),
        output_separator_(output_separator(tokenizer)),
        cuts_thoughts_(cuts_thoughts(tokenizer)),
        style_(style),
        prompt_(bos_text(tokenizer) + style.system) {}

  std::string write() {
    for (const ChatMessage& message : request_.messages) {
      if (message.role == "user") {
        close_outputs();
        prompt_.append(kUserToken).append(message.content);
      } else if (message.role == "assistant") {
        write_assistant(message);
      } else if (message.role == "tool") {
        write_output(message);
      }
    }
    const bool behind_outputs = close_outputs();
    if (request_.add_generation_prompt && !request_.continue_final_message && !behind_outputs)
      prompt_ += style_.reply_begin;
    return std::move(prompt_);
  }

 private:
  void write_assistant(const ChatMessage& message) {
    if (!close_outputs()) prompt_ += kAssistantToken;
    if (is_continued(request_, message)) {
      if (!message.reasoning.empty()) {
        prompt_.append(kThinkBegin).append("\n").append(message.reasoning);
        if (!message.content.empty()) prompt_.append("\n").append(kThinkEnd).append("\n\n");
      }
      prompt_ += message.content;
      return;
    }
    prompt_ += cuts_thoughts_ ? after_last_thought(message.content) : message.content;
    if (!message.tool_calls.empty()) write_calls(message.tool_calls);
    prompt_ += eos_;
  }

  void write_calls(const std::vector<ToolCall>& calls) {
    prompt_ += kToolCallsBegin;
    for (size_t i = 0; i < calls.size(); ++i)
      prompt_ += fmt::format("{}{}function{}{}\n```json\n{}\n```{}", i > 0 ? "\n" : "", kToolCallBegin, kToolSeparator,
                             calls[i].name, calls[i].arguments, kToolCallEnd);
    prompt_ += kToolCallsEnd;
  }

  void write_output(const ChatMessage& message) {
    prompt_.append(in_outputs_ ? output_separator_ : kToolOutputsBegin);
    prompt_.append(kToolOutputBegin).append(message.content).append(kToolOutputEnd);
    in_outputs_ = true;
  }

  // Whether there were any to close.
  bool close_outputs() {
    if (in_outputs_) prompt_ += kToolOutputsEnd;
    return std::exchange(in_outputs_, false);
  }

  const ChatRequest& request_;
  const std::string eos_;
  const std::string_view output_separator_;
  const bool cuts_thoughts_;
  const RoleTokenStyle& style_;
  std::string prompt_;
  bool in_outputs_ = false;
};

}  // namespace

Result<std::string> encode_role_token_chat(const ChatRequest& request, const Tokenizer& tokenizer,
                                           const RoleTokenStyle& style) {
  return RoleTokenWriter(request, tokenizer, style).write();
}

}  // namespace plait
