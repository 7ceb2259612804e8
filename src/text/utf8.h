// UTF-8: checking, repairing and reading it. Pure functions; safe from any thread.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace plait {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

enum class Utf8Kind {
  kCharacter,   // a well-formed character
  kMalformed,   // bytes that no character begins with: U+FFFD stands for all `bytes` of them
  kUnfinished,  // the text ends inside a character
};
struct Utf8Unit {
  Utf8Kind kind;
  size_t bytes;
};

// What stands at the front of `text`, which is not empty. Malformed bytes are taken as the Unicode standard's "maximal
// subparts" (section 3.9), so that every reader replaces the same bytes by the same number of U+FFFD.
Utf8Unit utf8_unit(std::string_view text);

bool is_utf8(std::string_view text);

// Malformed and unfinished bytes become U+FFFD.
std::string repair_utf8(std::string_view text);

// Takes what is certain off the front of `bytes`, repaired; the beginning of an unfinished character stays there.
std::string take_utf8(std::string& bytes);

// The character at `at` of well-formed text; moves `at` behind it.
inline char32_t next_character(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[at + i])); };
  const char32_t lead = byte(0);
  if (lead < 0x80) return at += 1, lead;
  if (lead < 0xE0) {
    const char32_t value = (lead & 0x1F) << 6 | (byte(1) & 0x3F);
    return at += 2, value;
  }
  if (lead < 0xF0) {
    const char32_t value = (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
    return at += 3, value;
  }
  const char32_t value = (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
  return at += 4, value;
}

// Where the character that ends before `at` (above 0) begins.
inline size_t previous_character(std::string_view text, size_t at) {
  do {
    --at;
  } while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
  return at;
}

// `character` is a Unicode scalar value.
void append_utf8(std::string& text, char32_t character);

}  // namespace plait
