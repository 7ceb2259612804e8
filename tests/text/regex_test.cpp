#include "text/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/text/random_text.h"
#include "text/regex_syntax.h"

namespace plait {
namespace {

// All matches of `pattern` in `text`, joined by "|".
std::string matches(std::string_view pattern, std::string_view text) {
  const Result<Regex> regex = Regex::compile(pattern);
  if (regex.has_error()) return regex.error().message;
  RegexScratch scratch;
  std::string found;
  RegexMatch match;
  for (size_t from = 0; (match = regex->find(text, from, scratch)).outcome == RegexOutcome::kFound; from = match.end) {
    if (match.end == match.begin) return "an empty match";
    found += (found.empty() ? "" : "|") + std::string(text.substr(match.begin, match.end - match.begin));
  }
  return found;
}

TEST(Regex, MeansWhatTokenizerFilesMean) {
  struct Case {
    std::string_view pattern, text, found;
  };
  const Case cases[] = {
      {R"(\s+)", "a \u0085\u3000b\u180Ec\u001Cd", " \u0085\u3000"},  // U+180E and U+001C are no blanks
      {R"(\S+)", "a \u180E", "a|\u180E"},
      {R"(\d+)", "1२²Ⅷ", "1२"},
      {R"(\w+)", "a_1\u0301é-ⅧⒶ²", "a_1\u0301é|ⅧⒶ"},
      {R"([\W]+)", "a-+b", "-+"},
      {R"([^\W_]+)", "a_b", "a|b"},
      {R"([\D]+)", "a1b", "a|b"},
      {R"(\p{Han}+)", "中、々〇", "中|々〇"},  // the script, not its extensions
      {R"(\p{^L}+|\P{N}\pN)", "1b2", "1|b2"},
      {R"([\p{L}&&[^\p{Han}]]+)", "a中b", "a|b"},
      {R"([a-z&&[^aeiou]&&[^x-z]]+)", "abcxyz", "bc"},
      {R"([^a&&[ab]]+)", "cab", "c|b"},  // "^" comes last: all but what both have
      {R"([[a-c][0-2]_]+)", "ab_1-9", "ab_1"},
      {R"([^[a-c]x]+)", "axyb", "y"},
      {R"([a\-\]\[^]+)", "a-][^b", "a-][^"},
      {R"([]a]+)", "]ab", "]a"},
      {R"([\x{4E00}-\u9FA5\x41]+)", "A中B", "A中"},
      {R"(\v+)", "\v\n", "\v"},
      {"#x y", "#x y", "#x y"},
      {R"(a{,2}b)", "aaab", "aab"},
      {R"(a{x})", "a{x}", "a{x}"},
      {R"((?i:'s|K))", "'S'\u017FK\u212Ak", "'S|'\u017F|K|\u212A|k"},
      {R"((a)(b))", "ab", "ab"},
      {R"(\bthe\b)", "the other the", "the|the"},
      {R"(\Bx)", "x ax", "x"},
      {R"(^a|b$)", "a\na b\nb", "a|a|b|b"},  // ^ and $ are of lines
      {R"(.+)", "a\rb\nc", "a\rb|c"},
      {R"(\s+$)", "a  \n b  ", "  |  "},
      {R"(a++b|a)", "aaab aa", "aaab|a|a"},
      {R"((?<=a)b|(?<!a)c)", "ab cac", "b|c"},
  };
  for (const Case& test : cases) EXPECT_EQ(matches(test.pattern, test.text), test.found) << test.pattern;
}

TEST(Regex, RefusesByName) {
  const std::pair<std::string_view, std::string_view> cases[] = {
      {R"((a)\1)", "\\1"},
      {R"((?<name>a))", "group"},
      {R"((*FAIL))", "verbs"},
      {R"(\p{Punct})", "Punct"},
      {R"(\p{NoSuchScript})", ""},
      {R"([[:alpha:]])", "POSIX"},
      {R"(\h)", "\\h"},
      {R"(a{1,2}+)", "{n,m}+"},
      {R"(\x{110000})", "not a Unicode character"},
      {R"(\uD800)", "Unicode"},
      {R"(\x80)", "raw byte"},
      {R"([a)", "without"},
      {R"([z-a])", "range"},
      {R"([a&&])", "&&"},
      {"a\\", "backslash"},
      {R"((?{code}))", "group"},
      {R"(\K)", "\\K"},
      {R"((a)", ""},
      {R"(\p{)", "without"},
      {R"((?R))", "group"},
      {R"(\Qa\E)", "\\Q"},
  };
  for (const auto& [pattern, words] : cases) {
    const Result<Regex> regex = Regex::compile(pattern);
    ASSERT_TRUE(regex.has_error()) << pattern;
    EXPECT_THAT(regex.error().message, testing::HasSubstr(std::string(words))) << pattern;
    EXPECT_TRUE(regex.error().kind == ErrorKind::kUnsupported || regex.error().kind == ErrorKind::kCorrupt) << pattern;
  }
  EXPECT_TRUE(Regex::compile(std::string(40, '[') + "a" + std::string(40, ']')).has_error());
  EXPECT_TRUE(Regex::compile(std::string(100'000, 'a')).has_error());
  EXPECT_TRUE(Regex::compile(std::string(10'000, '(')).has_error());
  EXPECT_TRUE(Regex::compile("(((((a{1000}){1000}){1000}){1000}){1000})").has_error());
}

TEST(Regex, BacktrackingIsBounded) {
  RegexScratch scratch;
  const std::string text = std::string(5000, 'a') + "b";
  for (const std::string_view pattern : {"(a+)+[^ab]", "(a|aa)+[^ab]", "(?=(a+)+[^ab])a"}) {
    const Regex regex = Regex::compile(pattern).value();
    EXPECT_EQ(regex.find(text, 0, scratch).outcome, RegexOutcome::kGaveUp) << pattern;
  }
}

// 2 MB of blanks that end no line would take hours if each were tried as a beginning.
TEST(Regex, TrailingBlanksAreFoundInLinearTime) {
  RegexScratch scratch;
  const std::string text = std::string(2'000'000, ' ') + "1";
  EXPECT_NE(Regex::compile(R"(\s+$)")->find(text, 0, scratch).outcome, RegexOutcome::kFound);
}

// The form that makes it so means the same: "[\\s]+$" is not rewritten.
TEST(Regex, TheLinearFormFindsTheSame) {
  RandomText random(13);
  constexpr int kTexts = 20'000;
  for (int i = 0; i < kTexts; ++i) {
    std::string text;
    for (size_t n = random.below(12); n > 0; --n) text += std::string_view(" \n\tab")[random.below(5)];
    ASSERT_EQ(matches(R"(\s+$)", text), matches(R"([\s]+$)", text)) << text;
  }
  std::printf("%d texts\n", kTexts);
}

TEST(Regex, Literals) {
  const Regex regex = Regex::compile_literal("a.[b").value();
  RegexScratch scratch;
  EXPECT_EQ(regex.find("axb a.[b", 0, scratch).begin, 4u);
}

}  // namespace
}  // namespace plait
