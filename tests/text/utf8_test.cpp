#include "text/utf8.h"

#include <gtest/gtest.h>

#include "tests/support/effort.h"
#include "tests/text/random_text.h"
#include "text/byte_level.h"

namespace plait {
namespace {

// The examples of the Unicode standard, section 3.9, and what decoders commonly get wrong.
TEST(Utf8, MalformedBytesBecomeOneReplacementForEachMaximalSubpart) {
  const std::pair<std::string, std::string> cases[] = {
      {"", ""},
      {"plain", "plain"},
      {"h\xC3\xA9 \xE4\xBD\xA0 \xF0\x9F\x98\x80", "h\xC3\xA9 \xE4\xBD\xA0 \xF0\x9F\x98\x80"},
      {std::string("a\0b", 3), std::string("a\0b", 3)},
      {"\xC0\xAF", "\uFFFD\uFFFD"},                      // overlong
      {"\xE0\x80\xAF", "\uFFFD\uFFFD\uFFFD"},            // overlong
      {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},            // a surrogate
      {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},  // above U+10FFFF
      {"\xF5\xFF", "\uFFFD\uFFFD"},                      // never part of UTF-8
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", "\uFFFD\uFFFD\uFFFD\uFFFD\x41"},
      {"\x80"
       "abc",
       "\uFFFD"
       "abc"},
      {"abc\xE4\xBD", "abc\uFFFD"},  // unfinished at the end
      {"\xF0\x9F\x98", "\uFFFD"},
      {"12345678\xFF"
       "12345678",
       "12345678\uFFFD"
       "12345678"},
  };
  for (const auto& [bytes, text] : cases) {
    EXPECT_EQ(repair_utf8(bytes), text);
    EXPECT_EQ(is_utf8(bytes), bytes == text);
  }
}

TEST(Utf8, EveryCharacterReadsBack) {
  std::string text;
  std::vector<char32_t> characters;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    append_utf8(text, c);
    characters.push_back(c);
  }
  ASSERT_TRUE(is_utf8(text));
  size_t at = 0;
  for (const char32_t c : characters) {
    const size_t begin = at;
    ASSERT_EQ(next_character(text, at), c);
    ASSERT_EQ(previous_character(text, at), begin);
  }
  EXPECT_EQ(at, text.size());
}

TEST(Utf8, TakenInPiecesIsTheSameAsAtOnce) {
  RandomText random(1);
  constexpr int kCases = repetitions(20000);
  for (int i = 0; i < kCases; ++i) {
    const std::string bytes = random.bytes(12);
    std::string pending, taken;
    for (size_t at = 0; at < bytes.size();) {
      const size_t n = 1 + random.below(3);
      pending += bytes.substr(at, n);
      taken += take_utf8(pending);
      ASSERT_LE(pending.size(), 3u);
      ASSERT_TRUE(is_utf8(taken));
      at += n;
    }
    ASSERT_EQ(taken + repair_utf8(pending), repair_utf8(bytes));
  }
  std::printf("%d byte strings\n", kCases);
}

TEST(ByteLevel, EveryByteHasItsCharacter) {
  EXPECT_EQ(written_of_bytes(" \n!~\xA1\xAD\xFF"), "ĠĊ!~¡\u0143ÿ");
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  EXPECT_EQ(bytes_of_written(written_of_bytes(all)), all);
  for (const std::string_view other : {"a b", "\u00A0", "\u00AD", "\u0144", "｜", "\n"}) {
    EXPECT_EQ(bytes_of_written(other), std::nullopt) << other;
  }
}

}  // namespace
}  // namespace plait
