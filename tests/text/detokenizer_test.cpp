#include "text/detokenizer.h"

#include "tests/support/effort.h"
#include "tests/text/random_text.h"
#include "tests/text/test_data.h"

namespace plait {
namespace {

const Tokenizer& tokenizer() {
  return demo_tokenizer();
}
int32_t byte_token(unsigned char byte) {
  for (int32_t id = 0; id < tokenizer().vocab_size(); ++id) {
    const std::string_view bytes = tokenizer().token_bytes(id, false);
    if (bytes.size() == 1 && static_cast<unsigned char>(bytes[0]) == byte) return id;
  }
  ADD_FAILURE() << "no token for a byte";
  return -1;
}
std::vector<int32_t> byte_tokens(std::string_view bytes) {
  static const std::vector<int32_t> of_byte = [] {
    std::vector<int32_t> ids;
    for (int byte = 0; byte < 256; ++byte) ids.push_back(byte_token(static_cast<unsigned char>(byte)));
    return ids;
  }();
  std::vector<int32_t> ids;
  for (const char byte : bytes) ids.push_back(of_byte[static_cast<unsigned char>(byte)]);
  return ids;
}

// What each token gives, then what finish() gives.
std::vector<std::string> steps(StreamingDetokenizer& detokenizer, const std::vector<int32_t>& ids) {
  std::vector<std::string> texts;
  for (const int32_t id : ids) texts.push_back(detokenizer.push({&id, 1}));
  texts.push_back(detokenizer.finish());
  return texts;
}
std::vector<std::string> steps(std::string_view bytes, std::vector<std::string> stops, bool include_stop = false) {
  StreamingDetokenizer detokenizer(&tokenizer(), std::move(stops), true, include_stop);
  return steps(detokenizer, byte_tokens(bytes));
}
using Texts = std::vector<std::string>;

TEST(StreamingDetokenizer, HoldsHalfCharacters) {
  EXPECT_EQ(steps("a\xC3\xA9", {}), (Texts{"a", "", "é", ""}));
  EXPECT_EQ(steps("\xF0\x9F\x98\x80", {}), (Texts{"", "", "", "😀", ""}));
  EXPECT_EQ(steps("\xE4\xBD", {}), (Texts{"", "", "\uFFFD"}));  // never finished
  EXPECT_EQ(steps("\xE4\xBD"
                  "a",
                  {}),
            (Texts{"", "", "\uFFFDa", ""}));  // broken off
  EXPECT_EQ(steps("\xE4\xE4\xBD\xA0", {}), (Texts{"", "\uFFFD", "", "你", ""}));
  EXPECT_EQ(steps("\x80\xFF", {}), (Texts{"\uFFFD", "\uFFFD", ""}));
}

TEST(StreamingDetokenizer, SpecialTokensBetweenTheHalvesOfACharacter) {
  const int32_t eos = tokenizer().eos_id().value();
  std::vector<int32_t> ids = byte_tokens("\xC3\xA9");
  ids.insert(ids.begin() + 1, eos);
  StreamingDetokenizer skips(&tokenizer(), {}, true, false), shows(&tokenizer(), {}, false, false);
  EXPECT_EQ(steps(skips, ids), (Texts{"", "", "é", ""}));
  EXPECT_EQ(steps(shows, ids), (Texts{"", "\uFFFD<｜end▁of▁sentence｜>", "\uFFFD", ""}));
}

TEST(StreamingDetokenizer, HoldsNoMoreThanABeginningOfAStopString) {
  EXPECT_EQ(steps("axxyb", {"xy"}), (Texts{"a", "", "x", "", "", ""}));
  EXPECT_EQ(steps("axxz", {"xy"}), (Texts{"a", "", "x", "xz", ""}));
  EXPECT_EQ(steps("ababac", {"ababb"}), (Texts{"", "", "", "", "ab", "abac", ""}));
  EXPECT_EQ(steps("ab", {"abc"}), (Texts{"", "", "ab"}));
  EXPECT_EQ(steps("\xC3\xA9\xC3\xA8!", {"éé"}), (Texts{"", "", "", "éè", "!", ""}));  // not by half a character
}

TEST(StreamingDetokenizer, TheStopStringThatIsCompleteFirstMatches) {
  const auto run = [](std::string_view text, std::vector<std::string> stops, bool include_stop) {
    StreamingDetokenizer detokenizer(&tokenizer(), std::move(stops), true, include_stop);
    const std::vector<int32_t> ids = byte_tokens(text);
    std::string out = detokenizer.push(ids);
    out += detokenizer.finish();
    return out + "|" + detokenizer.matched_stop().value_or("none") + "|" + std::to_string(detokenizer.tokens_used());
  };
  EXPECT_EQ(run("one two three", {"two", "three"}, false), "one |two|7");
  EXPECT_EQ(run("one two three", {"two", "three"}, true), "one two|two|7");
  EXPECT_EQ(run("abcd", {"abcd", "c"}, false), "ab|c|3");
  EXPECT_EQ(run("xabc", {"c", "bc", "abc"}, false), "x|abc|4");  // all at once: the longest
  EXPECT_EQ(run("abc", {"", "z"}, false), "abc|none|3");
  EXPECT_EQ(run("a\nb", {"\n"}, false), "a|\n|2");
  EXPECT_EQ(run("a\xE4", {"\uFFFD"}, false), "a|\uFFFD|2");
}

TEST(StreamingDetokenizer, NothingComesBehindAStopString) {
  StreamingDetokenizer detokenizer(&tokenizer(), {"b"}, true, false);
  EXPECT_EQ(detokenizer.push(byte_tokens("ab")), "a");
  EXPECT_EQ(detokenizer.push(byte_tokens("cd")), "");
  EXPECT_EQ(detokenizer.finish(), "");
  EXPECT_EQ(detokenizer.tokens_used(), 2);
}

struct Expected {
  std::string text;
  std::optional<std::string> stop;
};

// The definition: all the text at once, cut where a stop string is first complete.
Expected decode_and_cut(const std::vector<int32_t>& ids, const std::vector<std::string>& stops, bool include_stop) {
  const std::string text = tokenizer().decode(ids, true);
  for (size_t end = 1; end <= text.size(); ++end) {
    const std::string* longest = nullptr;
    for (const std::string& stop : stops) {
      if (text.substr(0, end).ends_with(stop) && (!longest || stop.size() > longest->size())) longest = &stop;
    }
    if (longest) return {text.substr(0, include_stop ? end : end - longest->size()), *longest};
  }
  return {text, std::nullopt};
}

TEST(StreamingDetokenizer, AnyChunksGiveTheTextOfDecodingAtOnce) {
  RandomText random(6);
  constexpr int kCases = repetitions(20000);
  int stopped = 0;
  for (int i = 0; i < kCases; ++i) {
    std::vector<int32_t> ids;
    for (size_t n = random.below(25); n > 0; --n) {
      // few different texts, so that stop strings occur; halves of characters and special tokens
      const std::string_view pieces[] = {"a", "b", "ab", "\xC3", "\xA9", "\xE4\xBD", "\xA0", "é"};
      const size_t which = random.below(10);
      const std::vector<int32_t> more =
          which < 8 ? byte_tokens(pieces[which])
                    : std::vector<int32_t>{static_cast<int32_t>(random.below(which == 8 ? 3 : 4098))};
      ids.insert(ids.end(), more.begin(), more.end());
    }
    std::vector<std::string> stops;
    for (size_t n = random.below(4); n > 0; --n) {
      std::string stop;
      for (size_t m = 1 + random.below(4); m > 0; --m)
        stop += std::vector<std::string>{"a", "b", "é", "\uFFFD", "aba"}[random.below(5)];
      stops.push_back(stop);
    }
    const bool include_stop = random.below(2) == 0;
    const Expected expected = decode_and_cut(ids, stops, include_stop);
    StreamingDetokenizer detokenizer(&tokenizer(), stops, true, include_stop);
    std::string text;
    for (size_t at = 0; at < ids.size();) {
      const size_t n = std::min(ids.size() - at, 1 + random.below(4));
      text += detokenizer.push({ids.data() + at, n});
      ASSERT_TRUE(is_utf8(text));
      at += n;
    }
    text += detokenizer.finish();
    ASSERT_EQ(text, expected.text);
    ASSERT_EQ(detokenizer.matched_stop(), expected.stop);
    ASSERT_LE(detokenizer.tokens_used(), static_cast<int64_t>(ids.size()));
    stopped += expected.stop.has_value();
  }
  std::printf("%d token streams, %d of them stopped\n", kCases, stopped);
}

}  // namespace
}  // namespace plait
