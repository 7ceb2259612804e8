// Kimi-K2: every message is framed, nothing stands before the first.
//   <|im_ROLE|>{role}<|im_middle|>{content}<|im_end|> ... <|im_assistant|>assistant<|im_middle|>
// Tool declarations come first, results are system frames:
//   <|im_system|>tool_declare<|im_middle|>{JSON}<|im_end|>
//   <|im_system|>tool<|im_middle|>## Return of {id}\n{text}<|im_end|>
// and calls follow the content of an assistant frame:
//   <|tool_calls_section_begin|> (<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{arguments}
//   <|tool_call_end|>)+ <|tool_calls_section_end|>
// K2-Thinking, whose vocabulary has <think>, puts <think>{reasoning}</think> before the content; the reasoning of
// finished exchanges is left out.
#include "text/chat_formats.h"
#include "text/python_json.h"

namespace plait {
namespace {

constexpr std::string_view kKimiSystemText = "You are Kimi, an AI assistant created by Moonshot AI.";
constexpr std::string_view kPlainSystemText = "You are a helpful assistant";
constexpr std::string_view kFrameMiddle = "<|im_middle|>", kFrameEnd = "<|im_end|>";

class KimiWriter {
 public:
  KimiWriter(const ChatRequest& request, const Tokenizer& tokenizer)
      : request_(request), template_(tokenizer.chat_template()), thinks_(tokenizer.id_of(kThinkBegin).has_value()) {}

  std::string write() {
    if (!request_.tools.empty()) {
      const bool compact = template_.find("separators=(',', ':')") != std::string_view::npos;
      open("system", "tool_declare");
      prompt_.append(python_json(request_.tools, compact ? kCompactJson : kOneLineJson)).append(kFrameEnd);
    }
    if (request_.messages[0].role != "system") {
      open("system", "system");
      prompt_.append(default_system_text()).append(kFrameEnd);
    }
    const size_t finished = finished_exchanges();
    for (size_t i = 0; i < request_.messages.size(); ++i) write_message(request_.messages[i], i < finished);
    if (request_.add_generation_prompt && !request_.continue_final_message) open("assistant", "assistant");
    return std::move(prompt_);
  }

 private:
  std::string_view default_system_text() const {
    const bool names_kimi = thinks_ || template_.find(kKimiSystemText) != std::string_view::npos;
    return names_kimi ? kKimiSystemText : kPlainSystemText;
  }

  // Messages up to and including the last answer of the assistant that calls no tool.
  size_t finished_exchanges() const {
    for (size_t i = request_.messages.size(); i > 0; --i) {
      const ChatMessage& message = request_.messages[i - 1];
      if (message.role == "assistant" && message.tool_calls.empty() && !is_continued(request_, message)) return i;
    }
    return 0;
  }

  void open(std::string_view frame, std::string_view role) {
    prompt_ += fmt::format("<|im_{}|>{}{}", frame, role, kFrameMiddle);
  }

  void write_message(const ChatMessage& message, bool finished) {
    open(message.role == "tool" ? "system" : message.role, message.role);
    if (message.role == "tool") prompt_ += fmt::format("## Return of {}\n", message.tool_call_id);
    const bool continued = is_continued(request_, message);
    if (message.role == "assistant" && thinks_) {
      prompt_.append(kThinkBegin).append(finished ? "" : message.reasoning);
      if (!continued || !message.content.empty()) prompt_ += kThinkEnd;
    }
    prompt_ += message.content;
    if (!message.tool_calls.empty()) write_calls(message.tool_calls);
    if (!continued) prompt_ += kFrameEnd;
  }

  void write_calls(const std::vector<ToolCall>& calls) {
    prompt_ += "<|tool_calls_section_begin|>";
    for (const ToolCall& call : calls) {
      const std::string id = call.id.empty() ? fmt::format("functions.{}:{}", call.name, calls_) : call.id;
      prompt_ +=
          fmt::format("<|tool_call_begin|>{}<|tool_call_argument_begin|>{}<|tool_call_end|>", id, call.arguments);
      ++calls_;
    }
    prompt_ += "<|tool_calls_section_end|>";
  }

  const ChatRequest& request_;
  const std::string_view template_;
  const bool thinks_;
  std::string prompt_;
  int64_t calls_ = 0;  // in the whole chat
};

}  // namespace

Result<std::string> encode_kimi_k2(const ChatRequest& request, const Tokenizer& tokenizer) {
  return KimiWriter(request, tokenizer).write();
}

}  // namespace plait
