// The demo model's chat prompts against those that the reference library gave.
#include <boost/json/array.hpp>
#include <boost/json/value_to.hpp>

#include "checkpoint/model_config.h"
#include "tests/text/test_data.h"
#include "text/chat.h"

namespace plait {
namespace {

using boost::json::value_to;

TEST(ChatVectors, Demo) {
  const boost::json::value file = boost::json::parse(read_repository_file("tests/data/tokenizer_vectors.json"));
  int chats = 0;
  for (const boost::json::value& vector : file.at("chat").as_array()) {
    ChatRequest request;
    for (const boost::json::value& message : vector.at("messages").as_array())
      request.messages.push_back(
          {.role = value_to<std::string>(message.at("role")), .content = value_to<std::string>(message.at("content"))});
    request.add_generation_prompt = vector.at("add_generation_prompt").as_bool();
    const auto prompt = encode_chat(ChatFormat::kDeepseekV3, request, demo_tokenizer());
    ASSERT_TRUE(prompt.has_value()) << prompt.error().message;
    EXPECT_EQ(*prompt, value_to<std::string>(vector.at("text")));
    ++chats;
  }
  EXPECT_EQ(chats, 6);
  std::printf("%d chats\n", chats);
}

TEST(ChatVectors, TheDemoModelIsRecognised) {
  ModelConfig config;
  config.family = Family::kDeepseekV3;
  EXPECT_EQ(detect_chat_format(config, demo_tokenizer()), ChatFormat::kDeepseekV3);
}

}  // namespace
}  // namespace plait
