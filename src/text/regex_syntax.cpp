#include "text/regex_syntax.h"

#include "text/utf8.h"

namespace plait {
namespace {

constexpr size_t kMaxPatternBytes = 64 << 10;
constexpr int kMaxClassDepth = 16;

constexpr std::string_view kWordItems = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
constexpr std::string_view kAnyCharacter = R"(\p{Any})";

// General categories keep their names; these properties are boolean; every other name is taken for a script.
constexpr std::string_view kCategories[] = {
    "Any", "C",  "Cc", "Cf", "Cn", "Co", "Cs", "L",  "Ll", "Lm", "Lo", "Lt", "Lu", "M",  "Mc", "Me", "Mn", "N",  "Nd",
    "Nl",  "No", "P",  "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S",  "Sc", "Sk", "Sm", "So", "Z",  "Zl", "Zp", "Zs"};
constexpr std::string_view kBooleans[] = {"Alphabetic", "White_Space", "Lowercase", "Uppercase", "Ideographic",
                                          "Emoji",      "Dash",        "Diacritic", "Math"};

bool listed(std::span<const std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

bool is_ascii_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_ascii_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
bool is_hex_digit(char c) {
  return is_ascii_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

std::string literal(char32_t character) {
  if (character < 0x80 &&
      (is_ascii_letter(static_cast<char>(character)) || is_ascii_digit(static_cast<char>(character))))
    return std::string(1, static_cast<char>(character));
  return fmt::format("\\x{{{:X}}}", static_cast<uint32_t>(character));
}

// What a backslash stands for: one character, or items of a class (negated or not).
struct Escape {
  std::optional<char32_t> character;
  std::string items;
  bool negated = false;
};

// One operand of "&&" (or a whole class): items that fit between brackets, and nested classes already translated.
struct ClassOperand {
  std::string items;
  std::vector<std::string> nested;
};

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  Result<std::string> run() {
    while (at_ < pattern_.size()) PLAIT_RETURN_IF_ERROR(step());
    return std::move(out_);
  }

 private:
  bool next_is(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }
  bool take(std::string_view text) {
    if (!next_is(text)) return false;
    at_ += text.size();
    return true;
  }
  Error refuse(std::string_view what) const {
    return unsupported(fmt::format("regex \"{}\", byte {}: {}", pattern_.substr(0, 200), at_, what));
  }

  Status step() {
    const char c = pattern_[at_];
    switch (c) {
      case '\\':
        return top_level_escape();
      case '[': {
        ++at_;
        PLAIT_ASSIGN_OR_RETURN(const std::string translated, character_class(0));
        out_ += translated;
        return {};
      }
      case '(':
        return group();
      case '{':
        return repeat();
      default:
        const size_t from = at_;
        const char32_t character = next_character(pattern_, at_);
        // operators keep their meaning; "#" and blanks are literals in both
        out_ += character < 0x80 ? std::string(pattern_.substr(from, 1)) : literal(character);
        return {};
    }
  }

  Status group() {
    if (next_is("(*")) return refuse("verbs \"(*...)\" are not supported");
    if (!next_is("(?")) {
      ++at_;
      out_ += "(?:";  // nobody reads captures
      return {};
    }
    for (const std::string_view opening : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:", "(?i)"}) {
      if (take(opening)) {
        out_ += opening;
        return {};
      }
    }
    return refuse("this kind of group is not supported");
  }

  // {n}, {n,}, {n,m} and {,m}; any other brace is a literal.
  Status repeat() {
    size_t end = at_ + 1;
    const auto digits = [&] {
      const size_t from = end;
      while (end < pattern_.size() && is_ascii_digit(pattern_[end])) ++end;
      return pattern_.substr(from, end - from);
    };
    const std::string_view least = digits();
    const bool comma = end < pattern_.size() && pattern_[end] == ',';
    if (comma) ++end;
    const std::string_view most = comma ? digits() : least;
    if (end >= pattern_.size() || pattern_[end] != '}' || (least.empty() && most.empty())) {
      ++at_;
      out_ += "\\{";
      return {};
    }
    at_ = end + 1;
    if (next_is("+")) return refuse("\"{n,m}+\" means different things to different engines");
    out_ += fmt::format("{{{}{}{}}}", least.empty() ? "0" : least, comma ? "," : "", comma ? most : "");
    return {};
  }

  Status top_level_escape() {
    const std::string word = fmt::format("[{}]", kWordItems);
    if (take("\\b")) {
      out_ += fmt::format("(?:(?<={0})(?!{0})|(?<!{0})(?={0}))", word);
      return {};
    }
    if (take("\\B")) {
      out_ += fmt::format("(?:(?<={0})(?={0})|(?<!{0})(?!{0}))", word);
      return {};
    }
    for (const std::string_view anchor : {"\\A", "\\z", "\\Z"}) {
      if (take(anchor)) {
        out_ += anchor;
        return {};
      }
    }
    PLAIT_ASSIGN_OR_RETURN(const Escape escape, read_escape());
    out_ +=
        escape.character ? literal(*escape.character) : fmt::format("[{}{}]", escape.negated ? "^" : "", escape.items);
    return {};
  }

  Result<Escape> read_escape() {
    if (at_ + 1 >= pattern_.size()) return refuse("a backslash at the end");
    const char c = pattern_[at_ + 1];
    constexpr std::pair<char, char32_t> kControls[] = {{'n', '\n'}, {'r', '\r'}, {'t', '\t'}, {'f', '\f'},
                                                       {'a', '\a'}, {'e', 0x1B}, {'v', 0x0B}};
    for (const auto& [name, character] : kControls) {
      if (c == name) return at_ += 2, Escape{character};
    }
    switch (c) {
      case 'd':
      case 'D':
        return at_ += 2, Escape{{}, "\\p{Nd}", c == 'D'};
      case 's':
      case 'S':
        return at_ += 2, Escape{{}, "\\p{White_Space}", c == 'S'};
      case 'w':
      case 'W':
        return at_ += 2, Escape{{}, std::string(kWordItems), c == 'W'};
      case 'p':
      case 'P':
        return property(c == 'P');
      case 'x':
      case 'u':
        return hexadecimal(c == 'u');
      default:
        break;
    }
    if (is_ascii_letter(c) || is_ascii_digit(c)) return refuse(fmt::format("the escape \"\\{}\" is not supported", c));
    ++at_;
    return Escape{next_character(pattern_, at_)};
  }

  Result<Escape> property(bool negated) {
    at_ += 2;
    std::string_view name;
    if (take("{")) {
      if (take("^")) negated = !negated;
      const size_t end = pattern_.find('}', at_);
      if (end == std::string_view::npos) return refuse("\"\\p{\" without \"}\"");
      name = pattern_.substr(at_, end - at_);
      at_ = end + 1;
    } else {
      name = pattern_.substr(at_, 1);
      at_ += name.size();
    }
    const bool plain = !name.empty() && std::all_of(name.begin(), name.end(),
                                                    [](char c) { return is_ascii_letter(c) || c == '_' || c == ' '; });
    if (!plain) return refuse(fmt::format("the property \"{}\" is not supported", name));
    const bool is_script = !listed(kCategories, name) && !listed(kBooleans, name);
    return Escape{{}, fmt::format("\\p{{{}{}}}", is_script ? "sc:" : "", name), negated};
  }

  // \xHH, \x{H...} and \uHHHH
  Result<Escape> hexadecimal(bool four_digits) {
    at_ += 2;
    const bool braces = !four_digits && take("{");
    const size_t most = four_digits ? 4 : braces ? 6 : 2;
    uint32_t value = 0;
    size_t digits = 0;
    while (digits < most && at_ < pattern_.size() && is_hex_digit(pattern_[at_])) {
      value = value * 16 + static_cast<uint32_t>(std::stoul(std::string(1, pattern_[at_]), nullptr, 16));
      ++at_, ++digits;
    }
    if (digits == 0 || (four_digits && digits < 4) || (braces && !take("}"))) return refuse("a malformed code point");
    if (!four_digits && !braces && value >= 0x80) return refuse("\"\\x80\" and above means a raw byte");
    if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return refuse("not a Unicode character");
    return Escape{static_cast<char32_t>(value)};
  }

  // Behind "[": up to and including "]".
  Result<std::string> character_class(int depth) {
    if (depth == kMaxClassDepth) return refuse("classes are nested too deeply");
    const bool negated = take("^");
    std::vector<ClassOperand> operands(1);
    for (bool first = true;; first = false) {
      if (at_ >= pattern_.size()) return refuse("\"[\" without \"]\"");
      if (!first && take("]")) break;
      if (take("&&")) {
        operands.emplace_back();
      } else if (next_is("[:")) {
        return refuse("POSIX classes \"[:name:]\" are not supported");
      } else if (take("[")) {
        PLAIT_ASSIGN_OR_RETURN(std::string nested, character_class(depth + 1));
        operands.back().nested.push_back(std::move(nested));
      } else {
        PLAIT_RETURN_IF_ERROR(class_item(operands.back()));
      }
    }
    return assemble(operands, negated);
  }

  // A character, a range or an escape.
  Status class_item(ClassOperand& operand) {
    PLAIT_ASSIGN_OR_RETURN(const Escape low, class_character());
    if (!low.character) {
      if (low.negated && low.items == kWordItems) {
        operand.nested.push_back(fmt::format("[^{}]", low.items));
      } else {
        operand.items += low.negated ? "\\P" + low.items.substr(2) : low.items;
      }
      return {};
    }
    const bool is_range = next_is("-") && at_ + 1 < pattern_.size() && pattern_[at_ + 1] != ']' &&
                          !pattern_.substr(at_ + 1).starts_with("&&") && pattern_[at_ + 1] != '[';
    if (!is_range) {
      operand.items += literal(*low.character);
      return {};
    }
    ++at_;
    PLAIT_ASSIGN_OR_RETURN(const Escape high, class_character());
    if (!high.character || *high.character < *low.character) return refuse("a range that is none");
    operand.items += literal(*low.character) + "-" + literal(*high.character);
    return {};
  }

  Result<Escape> class_character() {
    if (next_is("\\")) return read_escape();
    return Escape{next_character(pattern_, at_)};
  }

  Result<std::string> assemble(const std::vector<ClassOperand>& operands, bool negated) const {
    std::vector<std::string> parts;
    for (const ClassOperand& operand : operands) {
      if (operand.items.empty() && operand.nested.empty()) return refuse("\"&&\" with nothing on one side");
      std::vector<std::string> choices = operand.nested;
      if (!operand.items.empty()) choices.insert(choices.begin(), fmt::format("[{}]", operand.items));
      parts.push_back(choices.size() == 1 ? choices[0] : fmt::format("(?:{})", fmt::join(choices, "|")));
    }
    if (operands.size() == 1 && operands[0].nested.empty())
      return fmt::format("[{}{}]", negated ? "^" : "", operands[0].items);
    // every operand but the last looks ahead at the character that the last one takes
    std::string all;
    for (size_t i = 0; i + 1 < parts.size(); ++i) all += fmt::format("(?={})", parts[i]);
    all = fmt::format("(?:{}{})", all, parts.back());
    return negated ? fmt::format("(?:(?!{}){})", all, kAnyCharacter) : all;
  }

  std::string_view pattern_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

Result<std::string> pcre2_syntax(std::string_view pattern) {
  if (pattern.size() > kMaxPatternBytes) return unsupported("regex: longer than 64 KiB");
  return Translator(pattern).run();
}

}  // namespace plait
