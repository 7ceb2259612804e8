#include "text/character_class.h"

#include <utf8proc.h>

#include "base/assert.h"
#include "text/regex.h"
#include "text/utf8.h"

namespace plait {
namespace {

constexpr std::pair<std::string_view, uint8_t> kClasses[] = {{R"(\p{L}+)", kLetter},
                                                             {R"(\p{M}+)", kMark},
                                                             {R"(\p{N}+)", kNumber},
                                                             {R"([\p{P}\p{S}]+)", kPunctuation},
                                                             {R"(\s+)", kSpace},
                                                             {R"(\p{Han}+)", kHan},
                                                             {R"([\p{Lu}\p{Lt}]+)", kUpperOrTitle},
                                                             {R"(\p{Ll}+)", kLower}};

// Outside these, code points are unassigned or private: no class at all.
constexpr std::pair<char32_t, char32_t> kAssigned[] = {{0, 0xD800}, {0xE000, 0x40000}, {0xE0000, 0xE1000}};

std::vector<uint8_t> make_table() {
  std::string text;
  for (const auto& [begin, end] : kAssigned) {
    for (char32_t c = begin; c < end; ++c) append_utf8(text, c);
  }
  std::vector<uint8_t> table(0x110000);
  RegexScratch scratch;
  for (const auto& [pattern, bit] : kClasses) {
    const Result<Regex> regex = Regex::compile(pattern);
    PLAIT_ASSERT(regex.has_value(), "a pattern of our own does not compile");
    RegexMatch run;
    for (size_t from = 0; (run = regex->find(text, from, scratch)).outcome == RegexOutcome::kFound; from = run.end) {
      for (size_t at = run.begin; at < run.end;) table[next_character(text, at)] |= bit;
    }
    PLAIT_ASSERT(run.outcome == RegexOutcome::kNone, "a class gave up");
  }
  return table;
}

}  // namespace

const uint8_t* character_classes() {
  static const std::vector<uint8_t> table = make_table();
  return table.data();
}

bool is_white_space(char32_t c) {
  switch (c) {
    case 0x20:
    case 0x85:
    case 0xA0:
    case 0x1680:
    case 0x2028:
    case 0x2029:
    case 0x202F:
    case 0x205F:
    case 0x3000:
      return true;
    default:
      return (c >= 0x09 && c <= 0x0D) || (c >= 0x2000 && c <= 0x200A);
  }
}

bool is_word_character(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    case UTF8PROC_CATEGORY_SO:  // letters in circles and squares are alphabetic
      return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
             (c >= 0x1F170 && c <= 0x1F189);
    default:
      return c == 0x200C || c == 0x200D;
  }
}

}  // namespace plait
