#include "text/pre_tokenizer.h"

#include <gtest/gtest.h>

#include "tests/text/random_text.h"
#include "text/character_class.h"
#include "text/long_text.h"

namespace plait {
namespace {

PreTokenizer isolating(std::vector<std::string_view> patterns) {
  std::vector<SplitStep> steps;
  for (const std::string_view pattern : patterns)
    steps.push_back({Regex::compile(pattern).value(), std::string(pattern)});
  return PreTokenizer(std::move(steps), {});
}

std::vector<std::string> split(const PreTokenizer& pre_tokenizer, std::string_view text, PreTokenizerScratch& scratch) {
  std::vector<std::string> pieces;
  pre_tokenizer.split(text, scratch, [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

std::vector<std::string> split(const PreTokenizer& pre_tokenizer, std::string_view text) {
  PreTokenizerScratch scratch;
  return split(pre_tokenizer, text, scratch);
}

using Pieces = std::vector<std::string>;

TEST(DeepseekV3Splits, Examples) {
  const PreTokenizer splits = isolating({kDeepseekV3Numbers, kDeepseekV3Cjk, kDeepseekV3Words});
  ASSERT_TRUE(splits.has_scanner());
  EXPECT_EQ(split(splits, "12345 x"), (Pieces{"123", "45", " x"}));
  EXPECT_EQ(split(splits, "def f(a):\n    return a_b"),
            (Pieces{"def", " f", "(a", "):\n", "   ", " return", " a", "_b"}));
  EXPECT_EQ(split(splits, "你好，世界ひら abc"), (Pieces{"你好", "，", "世界ひら", " abc"}));
  EXPECT_EQ(split(splits, "あ・い、ー"), (Pieces{"あ", "・", "い", "、", "ー"}));  // the third split cuts CJK, too
  EXPECT_EQ(split(splits, "a  \n\n  b  "), (Pieces{"a", "  \n\n", " ", " b", "  "}));
  EXPECT_EQ(split(splits, std::string_view("\0\0a", 3)), (Pieces{std::string(1, '\0'), std::string("\0a", 2)}));
  EXPECT_EQ(split(splits, ""), Pieces{});
}

TEST(KimiK2Split, Examples) {
  const PreTokenizer splits = isolating({kKimiK2Split});
  ASSERT_TRUE(splits.has_scanner());
  EXPECT_EQ(split(splits, "I'LL don't HelloWorld"), (Pieces{"I'LL", " don't", " Hello", "World"}));
  EXPECT_EQ(split(splits, "ABあC中文x"), (Pieces{"ABあ", "C", "中文", "x"}));
  EXPECT_EQ(split(splits, "1234567890"), (Pieces{"123", "456", "789", "0"}));
}

struct PublishedSplit {
  std::string_view name;
  std::vector<std::string_view> patterns;
};
std::vector<PublishedSplit> published() {
  return {{"DeepSeek-V3", {kDeepseekV3Numbers, kDeepseekV3Cjk, kDeepseekV3Words}}, {"Kimi-K2", {kKimiK2Split}}};
}

TEST(SplitScanners, AgreeWithTheRegexesOnRandomText) {
  for (const PublishedSplit& which : published()) {
    const PreTokenizer scanner = isolating(which.patterns);
    PreTokenizer regexes = isolating(which.patterns);
    regexes.use_regexes_only();
    ASSERT_TRUE(scanner.has_scanner() && !regexes.has_scanner());
    PreTokenizerScratch scratch;
    RandomText random(2);
    constexpr int kTexts = 50'000;
    for (int i = 0; i < kTexts; ++i) {
      const std::string text = random.text(24);
      ASSERT_EQ(split(scanner, text, scratch), split(regexes, text, scratch)) << which.name << ": " << text;
    }
    std::printf("%s: %d texts\n", std::string(which.name).c_str(), kTexts);
  }
}

// Each character of Unicode where it matters: first, behind a letter, between blanks, twice. Of the planes without
// assigned characters a sample.
TEST(SplitScanners, AgreeWithTheRegexesOnEveryCharacter) {
  for (const PublishedSplit& which : published()) {
    const PreTokenizer scanner = isolating(which.patterns);
    PreTokenizer regexes = isolating(which.patterns);
    regexes.use_regexes_only();
    PreTokenizerScratch scratch;
    int64_t characters = 0;
    for (char32_t first = 0; first < 0x110000; first += 16) {
      if (first >= 0xD800 && first < 0xE000) continue;
      if (first >= 0x40000 && first / 0x1000 != 0xE0 && first % 0x400 != 0) continue;
      std::string text;
      for (char32_t c = first; c < first + 16; ++c) {
        std::string one;
        append_utf8(one, c);
        text += one + "Ab" + one + " " + one + "\n" + one + one + "1";
        ++characters;
      }
      ASSERT_EQ(split(scanner, text, scratch), split(regexes, text, scratch))
          << which.name << static_cast<uint32_t>(first);
    }
    std::printf("%s: %ld characters\n", std::string(which.name).c_str(), static_cast<long>(characters));
  }
}

TEST(SplitScanners, FilesMayEscapeMoreThanNeeded) {
  const std::string_view escaped =
      R"re([!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
  EXPECT_TRUE(isolating({kDeepseekV3Numbers, kDeepseekV3Cjk, escaped}).has_scanner());
  EXPECT_FALSE(isolating({kDeepseekV3Cjk, kDeepseekV3Numbers, escaped}).has_scanner());
  EXPECT_FALSE(isolating({kDeepseekV3Numbers}).has_scanner());
}

TEST(CharacterClass, BlanksAreTheSameEverywhere) {
  for (char32_t c = 0; c < 0x110000; ++c)
    ASSERT_EQ((character_classes()[c] & kSpace) != 0, is_white_space(c)) << static_cast<uint32_t>(c);
}

TEST(PreTokenizer, ACatastrophicRegexLeavesTheRestWhole) {
  const PreTokenizer splits = isolating({"(x+x+)+y|,"});
  std::string text = "a,b,";
  for (int i = 0; i < 100; ++i) text += std::string(200, 'x') + ",";
  const Pieces pieces = split(splits, text);
  std::string joined;
  for (const std::string& piece : pieces) joined += piece;
  EXPECT_EQ(joined, text);
  ASSERT_GE(pieces.size(), 4u);
  EXPECT_EQ(pieces[1], ",");
}

TEST(LongText, IsCutAsKimiDoes) {
  const auto sizes = [](std::string_view text) {
    std::vector<std::string_view> parts;
    cut_long_text(text, parts);
    std::vector<size_t> sizes;
    std::string joined;
    for (const std::string_view part : parts) {
      sizes.push_back(part.size());
      joined += part;
    }
    EXPECT_EQ(joined, text);
    return sizes;
  };
  using Sizes = std::vector<size_t>;
  EXPECT_EQ(sizes(""), Sizes{});
  EXPECT_EQ(sizes(std::string(25'000, 'a')), Sizes{25'000});
  EXPECT_EQ(sizes(std::string(25'001, 'a')), (Sizes{25'000, 1}));
  EXPECT_EQ(sizes(std::string(25'000, 'a') + std::string(25'000, ' ')), Sizes{50'000});
  EXPECT_EQ(sizes(std::string(24'990, ' ') + std::string(20, '\x1F')), (Sizes{25'000, 10}));  // Python counts U+001F
  std::string words;
  for (int i = 0; i < 200'000; ++i) words += "é ";
  EXPECT_EQ(sizes(words), Sizes{600'000});
  EXPECT_EQ(sizes(words + "b"), (Sizes{600'000, 1}));
  EXPECT_EQ(sizes(words.substr(0, 599'400) + std::string(30'000, 'x')), (Sizes{599'400 + 400, 25'000, 4'600}));
}

}  // namespace
}  // namespace plait
