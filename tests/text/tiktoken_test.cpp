// Kimi-K2's files: tiktoken.model and tokenizer_config.json.
#include <filesystem>
#include <fstream>

#include <boost/json/object.hpp>
#include <gmock/gmock.h>

#include "tests/text/test_data.h"
#include "text/tokenizer_parts.h"

namespace plait {
namespace {

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (size_t at = 0; at < bytes.size(); at += 3) {
    uint32_t group = 0;
    const size_t n = std::min<size_t>(3, bytes.size() - at);
    for (size_t i = 0; i < 3; ++i) group = group << 8 | (i < n ? static_cast<unsigned char>(bytes[at + i]) : 0);
    for (size_t i = 0; i < 4; ++i) text += i <= n ? kDigits[group >> (18 - 6 * i) & 63] : '=';
  }
  return text;
}

std::string ranks(const std::vector<std::string>& more) {
  std::string lines;
  for (int byte = 0; byte < 256; ++byte)
    lines += base64(std::string(1, static_cast<char>(byte))) + " " + std::to_string(byte) + "\n";
  for (size_t i = 0; i < more.size(); ++i) lines += base64(more[i]) + " " + std::to_string(256 + i) + "\n";
  return lines;
}

class TiktokenFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("plait_tiktoken_" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ / name, std::ios::binary) << text;
  }

  std::filesystem::path folder_;
};

TEST_F(TiktokenFolder, LowestRankMergesFirstAndWholePiecesWin) {
  write("tiktoken.model", ranks({"bc", "ab", "abc", " a", " abc", "中"}));
  write("tokenizer_config.json", R"({"added_tokens_decoder": {
      "262": {"content": "[BOS]", "special": true}, "264": {"content": "<|tool|>", "special": false}},
      "bos_token": "[BOS]"})");
  write("chat_template.jinja", "from a file of its own");
  const auto tokenizer = Tokenizer::load(folder_);
  ASSERT_TRUE(tokenizer.has_value()) << tokenizer.error().message;
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(tokenizer->encode("abc", true), Ids{258});
  EXPECT_EQ(tokenizer->encode("abcab", false), (Ids{258, 257}));
  EXPECT_EQ(tokenizer->encode("xabc abc", false), (Ids{'x', 258, 260}));
  EXPECT_EQ(tokenizer->encode("中[BOS]<|tool|><|reserved_token_263|>", false), (Ids{261, 262, 264, 263}));
  EXPECT_EQ(tokenizer->decode(Ids{261, 262, 264, 263}, true), "中<|tool|>");  // tools survive skip_special_tokens
  EXPECT_EQ(tokenizer->bos_id(), 262);
  EXPECT_EQ(tokenizer->vocab_size(), 262 + 256);
  EXPECT_EQ(tokenizer->id_of("Ġabc"), 260);
  EXPECT_EQ(tokenizer->chat_template(), "from a file of its own");
}

TEST_F(TiktokenFolder, LongRunsAreCutAsByKimi) {
  write("tiktoken.model", ranks({"aa", "aaa"}));
  const auto tokenizer = Tokenizer::load(folder_);
  ASSERT_TRUE(tokenizer.has_value()) << tokenizer.error().message;
  // 25,000 = 12,500 pairs, of which the third merge makes nothing else; then the run's last two
  const std::vector<int32_t> ids = tokenizer->encode(std::string(25'003, 'a'), false);
  EXPECT_EQ(ids.back(), 257);
  EXPECT_EQ(tokenizer->decode(ids, false).size(), 25'003u);
}

TEST(Tiktoken, HostileFiles) {
  const std::pair<std::string, std::string> cases[] = {
      {"", "no token for byte 0x00"},
      {"AA==", "line 1"},
      {"AA== x", "line 1"},
      {"AA== 0 1", "line 1"},
      {"AA= 0", "line 1"},
      {"A$== 0", "line 1"},
      {" 0", "line 1"},
      {"AA== -1", "id -1"},
      {"AA== 99999999999999999999", "line 1"},
      {"AA== 4294967296", "id 4294967296"},
      {ranks({}) + "YQ== 300", "line 257: token \"a\" has two ids"},
      {ranks({}) + "YWE= 97", "line 257: id 97 is given to both"},
      {ranks({std::string(2000, 'a')}), "line 257"},
  };
  for (const auto& [text, message] : cases) {
    const auto parts = read_tiktoken(text, {});
    ASSERT_TRUE(parts.has_error()) << message;
    EXPECT_THAT(parts.error().message, testing::HasSubstr(message));
  }
  const std::pair<boost::json::object, std::string> configs[] = {
      {{{"added_tokens_decoder", {{"x", {{"content", "y"}}}}}}, "added_tokens_decoder.x: is no id"},
      {{{"added_tokens_decoder", {{"300", {{"text", "y"}}}}}}, "content: is missing"},
      {{{"added_tokens_decoder", {{"97", {{"content", "<y>"}}}}}}, "id 97 is given to both"},
      {{{"added_tokens_decoder", {{"-3", {{"content", "<y>"}}}}}}, "id -3"},
      {{{"added_tokens_decoder", 3}}, "added_tokens_decoder"},
  };
  for (const auto& [config, message] : configs) {
    const auto parts = read_tiktoken(ranks({}), config);
    ASSERT_TRUE(parts.has_error()) << message;
    EXPECT_THAT(parts.error().message, testing::HasSubstr(message));
  }
}

}  // namespace
}  // namespace plait
