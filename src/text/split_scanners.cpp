#include "text/split_scanners.h"

#include <string>
#include <vector>

#include "text/character_class.h"
#include "text/utf8.h"

namespace plait {

const std::string_view kDeepseekV3Numbers = R"(\p{N}{1,3})";
const std::string_view kDeepseekV3Cjk = "[一-龥\u3040-ゟ゠-ヿ]+";
const std::string_view kDeepseekV3Words =
    R"re([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
const std::string_view kKimiK2Split =
    R"re([\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";

namespace {

constexpr size_t kNothing = std::string_view::npos;

bool is_newline(char32_t c) {
  return c == '\n' || c == '\r';
}
bool is_ascii_letter(char32_t c) {
  return (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
}

// A text and the classes of its characters.
class Cursor {
 public:
  explicit Cursor(std::string_view text) : text_(text) {}

  struct Character {
    char32_t value = 0;
    uint8_t classes = 0;
    size_t end = 0;  // bytes; where the next one begins
    bool exists = false;
  };
  Character at(size_t position) const {
    if (position >= text_.size()) return {0, 0, position, false};
    size_t end = position;
    const char32_t value = next_character(text_, end);
    return {value, classes_[value], end, true};
  }
  template <typename Predicate>
  size_t skip(size_t position, Predicate predicate) const {
    for (Character c = at(position); c.exists && predicate(c); c = at(position)) position = c.end;
    return position;
  }
  size_t skip_newlines(size_t position) const {
    while (position < text_.size() && is_newline(static_cast<unsigned char>(text_[position]))) ++position;
    return position;
  }

 private:
  std::string_view text_;
  const uint8_t* classes_ = character_classes();
};
using Character = Cursor::Character;

// Up to three characters of \p{N}.
size_t number_end(const Cursor& cursor, size_t at) {
  for (int i = 0; i < 3; ++i) {
    const Character c = cursor.at(at);
    if (!c.exists || !(c.classes & kNumber)) break;
    at = c.end;
  }
  return at;
}

// \s*[\r\n]+ | \s+(?!\S) | \s+ at a blank. `stops(c)` says where the text ends for these patterns.
template <typename Stops>
size_t blanks_end(const Cursor& cursor, size_t at, Stops stops) {
  size_t end = at, last_begin = at, behind_newline = kNothing;
  Character c = cursor.at(at);
  for (; c.exists && (c.classes & kSpace) && !stops(c); c = cursor.at(end)) {
    last_begin = end;
    end = c.end;
    if (is_newline(c.value)) behind_newline = end;
  }
  if (behind_newline != kNothing) return behind_newline;
  const bool before_text = c.exists && !stops(c);
  // the last blank belongs to the word behind it, unless it is the only one
  return before_text && last_begin > at ? last_begin : end;
}

// --- DeepSeek-V3 ---

bool is_v3_cjk(char32_t c) {
  return (c >= 0x4E00 && c <= 0x9FA5) || (c >= 0x3040 && c <= 0x30FF);
}

// What the first two splits leave to the third: runs of CJK, and the text between them and the numbers. The third cuts
// both, and sees neither from within the other.
template <bool kInCjk>
struct V3Region {
  static bool ends_at(const Character& c) { return (c.classes & kNumber) || is_v3_cjk(c.value) != kInCjk; }
  static bool is_letter(const Character& c) { return (c.classes & (kLetter | kMark)) && !ends_at(c); }
  static bool is_punctuation(const Character& c) { return (c.classes & kPunctuation) && !ends_at(c); }

  // The third split's match at `at`, if it has one there.
  static size_t match_end(const Cursor& cursor, size_t at, const Character& first) {
    if (is_letter(first)) return cursor.skip(first.end, is_letter);
    const Character second = cursor.at(first.end);
    const bool is_ascii_punctuation = first.value < 0x80 && (first.classes & kPunctuation);
    if (is_ascii_punctuation && is_ascii_letter(second.value))
      return cursor.skip(second.end, [](const Character& c) { return is_ascii_letter(c.value); });
    const bool may_lead = !(first.classes & kPunctuation) && !is_newline(first.value);
    if (may_lead && second.exists && is_letter(second)) return cursor.skip(second.end, is_letter);
    if (is_punctuation(first)) return punctuation_end(cursor, first.end);
    if (first.value == ' ' && second.exists && is_punctuation(second)) return punctuation_end(cursor, second.end);
    if (first.classes & kSpace) return blanks_end(cursor, at, ends_at);
    return kNothing;
  }

  static size_t punctuation_end(const Cursor& cursor, size_t at) {
    at = cursor.skip(at, is_punctuation);
    return kInCjk ? at : cursor.skip_newlines(at);
  }

  static size_t piece_end(const Cursor& cursor, size_t at, Character first) {
    if (const size_t end = match_end(cursor, at, first); end != kNothing) return end;
    do {  // what does not match, up to where it does
      at = first.end;
      first = cursor.at(at);
    } while (first.exists && !ends_at(first) && match_end(cursor, at, first) == kNothing);
    return at;
  }
};

size_t deepseek_v3_piece(std::string_view text, size_t at) {
  const Cursor cursor(text);
  const Character first = cursor.at(at);
  if (first.classes & kNumber) return number_end(cursor, at);
  return is_v3_cjk(first.value) ? V3Region<true>::piece_end(cursor, at, first)
                                : V3Region<false>::piece_end(cursor, at, first);
}

// --- Kimi-K2 ---

bool is_kimi_upper(const Character& c) {  // [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]
  return (c.classes & (kLetter | kMark)) && !(c.classes & (kLower | kHan));
}
bool is_kimi_lower(const Character& c) {  // [\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]
  return (c.classes & (kLetter | kMark)) && !(c.classes & (kUpperOrTitle | kHan));
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)?
size_t skip_contraction(const Cursor& cursor, size_t at) {
  if (cursor.at(at).value != '\'') return at;
  const auto folded = [](char32_t c) { return c == 0x17F ? U's' : c >= 'A' && c <= 'Z' ? c + 32 : c; };
  const Character first = cursor.at(at + 1);
  const Character second = cursor.at(first.end);
  const char32_t a = folded(first.value), b = folded(second.value);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return first.end;
  const bool two = (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l');
  return two ? second.end : at;
}

// [upper]*[lower]+ at `at`: letters of no case are both, so that the first run gives back what the second needs.
size_t kimi_lower_word(const Cursor& cursor, size_t at) {
  size_t upper_end = at, behind_caseless = kNothing;
  for (Character c = cursor.at(at); c.exists && is_kimi_upper(c); c = cursor.at(upper_end)) {
    upper_end = c.end;
    if (is_kimi_lower(c)) behind_caseless = upper_end;
  }
  const size_t end = cursor.skip(upper_end, is_kimi_lower);
  return end > upper_end ? end : behind_caseless;
}
// [upper]+[lower]*, where the pattern above does not match
size_t kimi_upper_word(const Cursor& cursor, size_t at) {
  const size_t end = cursor.skip(at, is_kimi_upper);
  return end > at ? cursor.skip(end, is_kimi_lower) : kNothing;
}

size_t kimi_word_end(const Cursor& cursor, size_t at, const Character& first) {
  const bool may_lead = !is_newline(first.value) && !(first.classes & (kLetter | kNumber));
  for (const auto word : {kimi_lower_word, kimi_upper_word}) {
    if (may_lead) {
      if (const size_t end = word(cursor, first.end); end != kNothing) return skip_contraction(cursor, end);
    }
    if (const size_t end = word(cursor, at); end != kNothing) return skip_contraction(cursor, end);
  }
  return kNothing;
}

bool is_kimi_symbol(const Character& c) {  // [^\s\p{L}\p{N}]
  return !(c.classes & (kSpace | kLetter | kNumber));
}

size_t kimi_k2_piece(std::string_view text, size_t at) {
  const Cursor cursor(text);
  const Character first = cursor.at(at);
  if (first.classes & kHan) return cursor.skip(first.end, [](const Character& c) { return (c.classes & kHan) != 0; });
  if (const size_t end = kimi_word_end(cursor, at, first); end != kNothing) return end;
  if (first.classes & kNumber) return number_end(cursor, at);
  const Character second = cursor.at(first.end);
  if (first.value == ' ' && second.exists && is_kimi_symbol(second))
    return cursor.skip_newlines(cursor.skip(second.end, is_kimi_symbol));
  if (is_kimi_symbol(first)) return cursor.skip_newlines(cursor.skip(first.end, is_kimi_symbol));
  return blanks_end(cursor, at, [](const Character&) { return false; });
}

// Files differ in which punctuation they escape without need.
std::string without_needless_escapes(std::string_view pattern) {
  std::string plain;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const bool needless = pattern[i] == '\\' && i + 1 < pattern.size() &&
                          std::string_view("\"#'!%&,/:;<=>@_`~").find(pattern[i + 1]) != std::string_view::npos;
    if (!needless) plain += pattern[i];
    if (pattern[i] == '\\' && !needless && i + 1 < pattern.size()) plain += pattern[++i];
  }
  return plain;
}

}  // namespace

PieceScanner find_scanner(std::span<const std::string_view> patterns) {
  static const std::pair<std::vector<std::string_view>, PieceScanner> kScanners[] = {
      {{kDeepseekV3Numbers, kDeepseekV3Cjk, kDeepseekV3Words}, deepseek_v3_piece},
      {{kKimiK2Split}, kimi_k2_piece},
  };
  for (const auto& [known, scanner] : kScanners) {
    const bool same =
        std::equal(patterns.begin(), patterns.end(), known.begin(), known.end(),
                   [](std::string_view a, std::string_view b) { return without_needless_escapes(a) == b; });
    if (same) return scanner;
  }
  return nullptr;
}

}  // namespace plait
