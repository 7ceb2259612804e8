// Each format's prompts, written out. B, E, U and A below are BOS, EOS and DeepSeek's role tokens.
#include <boost/json/array.hpp>
#include <boost/json/serialize.hpp>
#include <gmock/gmock.h>

#include "checkpoint/model_config.h"
#include "tests/text/small_tokenizer.h"
#include "tests/text/test_data.h"
#include "text/chat.h"
#include "text/python_json.h"

namespace plait {
namespace {

// A byte-level tokenizer with these added tokens; the first two are BOS and EOS.
Tokenizer make_tokenizer(const std::vector<std::string>& added, const std::string& chat_template) {
  boost::json::array added_tokens;
  for (size_t i = 0; i < added.size(); ++i)
    added_tokens.push_back({{"id", 256 + i}, {"content", added[i]}, {"special", true}});
  boost::json::object tokenizer = small_tokenizer();
  tokenizer["added_tokens"] = added_tokens;
  const boost::json::object config{{"bos_token", added[0]}, {"eos_token", added[1]}, {"chat_template", chat_template}};
  return Tokenizer::parse(boost::json::serialize(tokenizer), boost::json::serialize(config)).value();
}

const std::string kB = "<｜begin▁of▁sentence｜>", kE = "<｜end▁of▁sentence｜>", kU = "<｜User｜>",
                  kA = "<｜Assistant｜>";
const std::string kTemplateV3 =
    "{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{{'<｜User｜>'}}'</think>'"
    "'\\n<｜tool▁output▁begin｜>'";

Tokenizer deepseek(const std::string& chat_template = kTemplateV3) {
  return make_tokenizer({kB, kE, kU, kA, "<think>", "</think>"}, chat_template);
}
Tokenizer kimi(bool thinks = false) {
  std::vector<std::string> added{"[BOS]", "[EOS]", "<|im_end|>", "<|im_middle|>"};
  if (thinks) added.insert(added.end(), {"<think>", "</think>"});
  return make_tokenizer(added, "");
}

std::string prompt(ChatFormat format, const ChatRequest& request, const Tokenizer& tokenizer) {
  const Result<std::string> text = encode_chat(format, request, tokenizer);
  return text.has_value() ? *text : "error: " + text.error().message;
}

ChatRequest conversation() {
  return {
      .messages = {{"system", "Be brief."}, {"user", "hi"}, {"assistant", "<think>hm</think>hello"}, {"user", "bye"}}};
}

// Asks two tools, gets both answers, replies.
ChatRequest with_tools() {
  ChatRequest request{.messages = {{"user", "weather?"},
                                   {"assistant", "Looking."},
                                   {"tool", "sunny"},
                                   {"tool", "12 C"},
                                   {"assistant", "Sunny, 12 C."},
                                   {"user", "thanks"}}};
  request.messages[1].tool_calls = {{"functions.sky:0", "sky", R"({"city": "Ulm"})"}, {"functions.t:1", "t", "{}"}};
  request.messages[2].tool_call_id = "functions.sky:0";
  request.messages[3].tool_call_id = "functions.t:1";
  return request;
}

boost::json::array declarations() {
  return {{{"type", "function"},
           {"function",
            {{"name", "sky"},
             {"description", "What the sky \"looks\" like é"},
             {"parameters", {{"type", "object"}, {"x", 1.0}}}}}}};
}

ChatRequest continued(ChatRequest request, const std::string& content, const std::string& reasoning = {}) {
  request.messages.push_back({.role = "assistant", .content = content, .reasoning = reasoning});
  request.continue_final_message = true;
  return request;
}

TEST(ChatFormats, DeepseekV2) {
  const Tokenizer tokenizer = deepseek();
  EXPECT_EQ(prompt(ChatFormat::kDeepseekV2, conversation(), tokenizer),
            kB + "Be brief.\n\nUser: hi\n\nAssistant: <think>hm</think>hello" + kE + "User: bye\n\nAssistant:");
  EXPECT_EQ(prompt(ChatFormat::kDeepseekV2, continued({.messages = {{"user", "hi"}}}, "I "), tokenizer),
            kB + "User: hi\n\nAssistant: I ");
  EXPECT_EQ(prompt(ChatFormat::kDeepseekV2, with_tools(), tokenizer),
            "error: messages[1]: the chat format deepseek-v2 has no tool calls");
}

const std::string kCallsV3 =
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>sky\n```json\n{\"city\": "
    "\"Ulm\"}\n```<｜tool▁call▁end｜>\n"
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>t\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
const std::string kOutputsV3 =
    "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>sunny<｜tool▁output▁end｜>\n"
    "<｜tool▁output▁begin｜>12 C<｜tool▁output▁end｜><｜tool▁outputs▁end｜>";

TEST(ChatFormats, DeepseekV25) {
  const Tokenizer tokenizer = deepseek();
  EXPECT_EQ(prompt(ChatFormat::kDeepseekV25, conversation(), tokenizer),
            kB + "Be brief." + kU + "hi" + kA + "hello" + kE + kU + "bye" + kA);
  ChatRequest request = with_tools();
  request.tools = declarations();
  EXPECT_EQ(prompt(ChatFormat::kDeepseekV25, request, tokenizer),
            kB +
                "\n\n## Tools\n\n### Function\n\nYou have the following functions available:\n\n- `sky`:\n```json\n{\n"
                "    \"name\": \"sky\",\n    \"description\": \"What the sky \\\"looks\\\" like é\",\n"
                "    \"parameters\": {\n        \"type\": \"object\",\n        \"x\": 1.0\n    }\n}\n```" +
                kU + "weather?" + kA + "Looking." + kCallsV3 + kE + kOutputsV3 + "Sunny, 12 C." + kE + kU + "thanks" +
                kA);
}

TEST(ChatFormats, DeepseekV3) {
  const Tokenizer tokenizer = deepseek();
  EXPECT_EQ(prompt(ChatFormat::kDeepseekV3, conversation(), tokenizer),
            kB + "Be brief." + kU + "hi" + kA + "hello" + kE + kU + "bye" + kA);
  EXPECT_EQ(
      prompt(ChatFormat::kDeepseekV3, with_tools(), tokenizer),
      kB + kU + "weather?" + kA + "Looking." + kCallsV3 + kE + kOutputsV3 + "Sunny, 12 C." + kE + kU + "thanks" + kA);
  ChatRequest unanswered = with_tools();
  unanswered.messages.resize(4);
  EXPECT_EQ(prompt(ChatFormat::kDeepseekV3, unanswered, tokenizer),  // the results open the reply
            kB + kU + "weather?" + kA + "Looking." + kCallsV3 + kE + kOutputsV3);
  EXPECT_EQ(prompt(ChatFormat::kDeepseekV3, continued(unanswered, "It"), tokenizer),
            kB + kU + "weather?" + kA + "Looking." + kCallsV3 + kE + kOutputsV3 + "It");
  EXPECT_EQ(prompt(ChatFormat::kDeepseekV3, continued({.messages = {{"user", "hi"}}}, "</think>I "), tokenizer),
            kB + kU + "hi" + kA + "</think>I ");
}

TEST(ChatFormats, DeepseekR1) {
  const Tokenizer tokenizer = deepseek("'<｜Assistant｜><think>\\n' '<｜tool▁output▁begin｜>' ");
  EXPECT_EQ(prompt(ChatFormat::kDeepseekR1, conversation(), deepseek()),
            kB + "Be brief." + kU + "hi" + kA + "hello" + kE + kU + "bye" + kA + "<think>\n");
  ChatRequest unanswered = with_tools();
  unanswered.messages.resize(4);
  EXPECT_THAT(prompt(ChatFormat::kDeepseekR1, unanswered, tokenizer),  // R1's own text has no line between results
              testing::EndsWith("sunny<｜tool▁output▁end｜><｜tool▁output▁begin｜>12 C<｜tool▁output▁end｜>"
                                "<｜tool▁outputs▁end｜>"));
  EXPECT_EQ(prompt(ChatFormat::kDeepseekR1, continued({.messages = {{"user", "hi"}}}, "", "Well"), tokenizer),
            kB + kU + "hi" + kA + "<think>\nWell");
  EXPECT_EQ(prompt(ChatFormat::kDeepseekR1, continued({.messages = {{"user", "hi"}}}, "He", "Well"), tokenizer),
            kB + kU + "hi" + kA + "<think>\nWell\n</think>\n\nHe");
}

TEST(ChatFormats, DeepseekV31) {
  const Tokenizer tokenizer = deepseek();
  const std::string head = kB + "Be brief." + kU + "hi" + kA + "</think>hello" + kE + kU + "bye" + kA;
  ChatRequest request = conversation();
  EXPECT_EQ(prompt(ChatFormat::kDeepseekV31, request, tokenizer), head + "</think>");
  request.thinking = true;
  EXPECT_EQ(prompt(ChatFormat::kDeepseekV31, request, tokenizer), head + "<think>");
  request.thinking = false;
  request.messages[2].content = "a</think>b</think>c";  // cut behind the first one
  EXPECT_THAT(prompt(ChatFormat::kDeepseekV31, request, tokenizer), testing::HasSubstr("</think>b</think>c" + kE));

  const std::string calls =
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>sky<｜tool▁sep｜>{\"city\": \"Ulm\"}<｜tool▁call▁end｜>"
      "<｜tool▁call▁begin｜>t<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
  const std::string outputs =
      "<｜tool▁output▁begin｜>sunny<｜tool▁output▁end｜><｜tool▁output▁begin｜>12 C<｜tool▁output▁end｜>";
  EXPECT_EQ(prompt(ChatFormat::kDeepseekV31, with_tools(), tokenizer), kB + kU + "weather?" + kA + "</think>Looking." +
                                                                           calls + kE + outputs + "Sunny, 12 C." + kE +
                                                                           kU + "thanks" + kA + "</think>");
  ChatRequest unanswered = with_tools();
  unanswered.messages.resize(4);
  EXPECT_THAT(prompt(ChatFormat::kDeepseekV31, unanswered, tokenizer), testing::EndsWith(outputs));
}

TEST(ChatFormats, DeepseekV31DeclaresToolsBehindTheSystemText) {
  ChatRequest request{.messages = {{"system", "Be brief."}, {"user", "hi"}}, .tools = declarations()};
  EXPECT_EQ(
      prompt(ChatFormat::kDeepseekV31, request, deepseek()),
      kB +
          "Be brief.\n\n## Tools\nYou have access to the following tools:\n\n### sky\n"
          "Description: What the sky \"looks\" like é\n\nParameters: {\"type\": \"object\", \"x\": 1.0}\n\n"
          "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
          "tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>{{additional_tool_calls}}"
          "<｜tool▁calls▁end｜>\n\nWhere:\n\n- `tool_call_name` must be an exact match to one of the available "
          "tools\n- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
          "- For multiple tool calls, chain them directly without separators or spaces\n" +
          kU + "hi" + kA + "</think>");
}

TEST(ChatFormats, DeepseekV31Continues) {
  const Tokenizer tokenizer = deepseek();
  const ChatRequest ask{.messages = {{"user", "hi"}}};
  const std::string head = kB + kU + "hi" + kA;
  EXPECT_EQ(prompt(ChatFormat::kDeepseekV31, continued(ask, "I "), tokenizer), head + "</think>I ");
  ChatRequest thinking = continued(ask, "Hm");
  thinking.thinking = true;
  EXPECT_EQ(prompt(ChatFormat::kDeepseekV31, thinking, tokenizer), head + "<think>Hm");
  EXPECT_EQ(prompt(ChatFormat::kDeepseekV31, continued(ask, "I ", "Hm"), tokenizer), head + "<think>Hm</think>I ");
}

TEST(ChatFormats, KimiK2) {
  const std::string system = "<|im_system|>system<|im_middle|>You are a helpful assistant<|im_end|>";
  EXPECT_EQ(prompt(ChatFormat::kKimiK2, {.messages = {{"user", "hi"}}}, kimi()),
            system + "<|im_user|>user<|im_middle|>hi<|im_end|><|im_assistant|>assistant<|im_middle|>");
  ChatRequest request = with_tools();
  request.tools = declarations();
  EXPECT_EQ(prompt(ChatFormat::kKimiK2, request, kimi()),
            "<|im_system|>tool_declare<|im_middle|>[{\"type\": \"function\", \"function\": {\"name\": \"sky\", "
            "\"description\": \"What the sky \\\"looks\\\" like é\", \"parameters\": {\"type\": \"object\", \"x\": "
            "1.0}}}]<|im_end|>" +
                system +
                "<|im_user|>user<|im_middle|>weather?<|im_end|><|im_assistant|>assistant<|im_middle|>Looking."
                "<|tool_calls_section_begin|><|tool_call_begin|>functions.sky:0<|tool_call_argument_begin|>{\"city\": "
                "\"Ulm\"}<|tool_call_end|><|tool_call_begin|>functions.t:1<|tool_call_argument_begin|>{}"
                "<|tool_call_end|><|tool_calls_section_end|><|im_end|>"
                "<|im_system|>tool<|im_middle|>## Return of functions.sky:0\nsunny<|im_end|>"
                "<|im_system|>tool<|im_middle|>## Return of functions.t:1\n12 C<|im_end|>"
                "<|im_assistant|>assistant<|im_middle|>Sunny, 12 C.<|im_end|>"
                "<|im_user|>user<|im_middle|>thanks<|im_end|><|im_assistant|>assistant<|im_middle|>");
  EXPECT_EQ(prompt(ChatFormat::kKimiK2, continued({.messages = {{"developer", "s"}}}, "I "), kimi()),
            "<|im_system|>system<|im_middle|>s<|im_end|><|im_assistant|>assistant<|im_middle|>I ");
}

TEST(ChatFormats, KimiK2ThinkingKeepsOnlyOpenThoughts) {
  ChatRequest request = with_tools();
  request.messages[1].reasoning = "first";
  request.messages.push_back({.role = "assistant", .content = "", .reasoning = "second"});
  request.messages.back().tool_calls = {{"", "t", "{}"}};
  const std::string text = prompt(ChatFormat::kKimiK2, request, kimi(true));
  EXPECT_THAT(text, testing::StartsWith("<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by "
                                        "Moonshot AI.<|im_end|>"));
  EXPECT_THAT(text, testing::HasSubstr("<|im_middle|><think></think>Looking.<|tool_calls_section_begin|>"));
  EXPECT_THAT(text, testing::HasSubstr("<think>second</think><|tool_calls_section_begin|><|tool_call_begin|>"
                                       "functions.t:2<|tool_call_argument_begin|>"));
}

TEST(ChatFormats, SeveralSystemMessagesAsTheTemplateHasThem) {
  const ChatRequest request{.messages = {{"system", "one"}, {"user", "hi"}, {"developer", "two"}}};
  const std::pair<std::string, std::string> cases[] = {
      {"{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}", "one\n\ntwo"},
      {"{% set ns.system_prompt = ns.system_prompt + message['content'] %}", "onetwo"},
      {"{% set ns.system_prompt = message['content'] %}", "two"},
      {"", "one\n\ntwo"},
  };
  for (const auto& [text, system] : cases)
    EXPECT_EQ(prompt(ChatFormat::kDeepseekV3, request, deepseek(text)), kB + system + kU + "hi" + kA) << text;
}

TEST(ChatFormats, TheFirstV3KeepsThoughts) {
  EXPECT_THAT(prompt(ChatFormat::kDeepseekV3, conversation(), deepseek("{{'<｜User｜>'}}")),
              testing::HasSubstr(kA + "<think>hm</think>hello" + kE));
}

TEST(ChatFormats, ErrorsNameTheMessage) {
  const Tokenizer tokenizer = deepseek();
  const auto error_of = [&](const ChatRequest& request, ChatFormat format = ChatFormat::kDeepseekV3) {
    const Result<std::string> text = encode_chat(format, request, tokenizer);
    EXPECT_TRUE(text.has_error());
    if (text.has_value()) return *text;
    EXPECT_EQ(text.error().kind, ErrorKind::kInvalid);
    return text.error().message;
  };
  EXPECT_EQ(error_of({}), "messages: at least one is needed");
  EXPECT_THAT(error_of({.messages = {{"user", "a"}, {"robot", "b"}}}),
              testing::StartsWith("messages[1]: role 'robot'"));
  EXPECT_THAT(error_of({.messages = {{"user", "a"}, {"tool", "b"}}}),
              testing::StartsWith("messages[1]: role 'tool' needs"));
  EXPECT_THAT(error_of(continued({.messages = {{"user", "a"}, {"tool", "b"}}}, "")),
              testing::StartsWith("messages[1]"));
  EXPECT_THAT(error_of({.messages = {{"user", "a"}}, .continue_final_message = true}),
              testing::StartsWith("messages[0]: continue_final_message"));
  EXPECT_THAT(error_of({.messages = {{"user", "a"}}, .tools = declarations()}), testing::StartsWith("tools:"));
  EXPECT_THAT(error_of({.messages = {{"user", "a"}}, .tools = {1}}, ChatFormat::kDeepseekV31),
              testing::StartsWith("tools[0]:"));
  ChatRequest nameless = with_tools();
  nameless.messages[1].tool_calls[1].name.clear();
  EXPECT_THAT(error_of(nameless), testing::StartsWith("messages[1]: tool_calls[1]"));
  ChatRequest no_id = with_tools();
  no_id.messages[3].tool_call_id.clear();
  EXPECT_THAT(error_of(no_id, ChatFormat::kKimiK2),
              testing::StartsWith("messages[3]: role 'tool' needs a tool_call_id"));
  ChatRequest user_calls{.messages = {{"user", "a"}}};
  user_calls.messages[0].tool_calls = {{"", "t", "{}"}};
  EXPECT_THAT(error_of(user_calls), testing::StartsWith("messages[0]: only role 'assistant'"));
}

TEST(ChatFormats, WordsAndNames) {
  for (const ChatFormat format : {ChatFormat::kDeepseekV2, ChatFormat::kDeepseekV25, ChatFormat::kDeepseekV3,
                                  ChatFormat::kDeepseekR1, ChatFormat::kDeepseekV31, ChatFormat::kKimiK2})
    EXPECT_EQ(parse_chat_format(name_of(format)).value(), format);
  const auto unknown = parse_chat_format("chatml");
  ASSERT_TRUE(unknown.has_error());
  EXPECT_THAT(unknown.error().message, testing::HasSubstr("deepseek-v2, deepseek-v2.5, deepseek-v3, deepseek-r1, "
                                                          "deepseek-v3.1, kimi-k2"));
}

TEST(ChatFormats, AreDetected) {
  const auto detected = [](Family family, const Tokenizer& tokenizer) {
    ModelConfig config;
    config.family = family;
    return name_of(detect_chat_format(config, tokenizer));
  };
  EXPECT_EQ(detected(Family::kKimiK2, deepseek()), "kimi-k2");
  EXPECT_EQ(detected(Family::kDeepseekV3, kimi()), "kimi-k2");
  EXPECT_EQ(detected(Family::kDeepseekV2, make_tokenizer({kB, kE}, "{{ 'User: ' + message['content'] }}")),
            "deepseek-v2");
  EXPECT_EQ(detected(Family::kDeepseekV2, make_tokenizer({kB, kE}, "")), "deepseek-v2");
  EXPECT_EQ(detected(Family::kDeepseekV2, deepseek()), "deepseek-v2.5");
  EXPECT_EQ(detected(Family::kDeepseekV3, deepseek()), "deepseek-v3");
  EXPECT_EQ(detected(Family::kDeepseekV3, deepseek("")), "deepseek-v3");
  EXPECT_EQ(detected(Family::kDeepseekV3, deepseek("{{'<｜Assistant｜><think>\\n'}}")), "deepseek-r1");
  EXPECT_EQ(detected(Family::kDeepseekV3, deepseek("{% if not thinking is defined %}")), "deepseek-v3.1");
}

TEST(PythonJson, WritesWhatJsonDumpsWrites) {
  const boost::json::value value{{"a", {1, -2, 3.0, 1e16, 1e15, 1e-5, 0.1, 18446744073709551615u}},
                                 {"b", {nullptr, true, false, boost::json::array(), boost::json::object()}},
                                 {"é\"\\\n\t\x01\x7F/", "中"}};
  EXPECT_EQ(python_json(value),
            "{\"a\": [1, -2, 3.0, 1e+16, 1000000000000000.0, 1e-05, 0.1, 18446744073709551615], \"b\": [null, true, "
            "false, [], {}], \"é\\\"\\\\\\n\\t\\u0001\x7F/\": \"中\"}");
  EXPECT_EQ(python_json({{"a", {1, 2}}, {"b", "c"}}, kCompactJson), "{\"a\":[1,2],\"b\":\"c\"}");
  EXPECT_EQ(python_json({{"a", {1}}, {"b", boost::json::object()}}, kIndentedJson),
            "{\n    \"a\": [\n        1\n    ],\n    \"b\": {}\n}");
}

}  // namespace
}  // namespace plait
