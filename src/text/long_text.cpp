#include "text/long_text.h"

#include "text/character_class.h"
#include "text/utf8.h"

namespace plait {
namespace {

constexpr size_t kMaxCharacters = 400'000;
constexpr size_t kMaxRun = 25'000;  // characters

// Python's str.isspace, which counts four separators that \s does not.
bool is_python_space(char32_t c) {
  return is_white_space(c) || (c >= 0x1C && c <= 0x1F);
}

}  // namespace

void cut_long_text(std::string_view text, std::vector<std::string_view>& parts) {
  size_t part_begin = 0, characters = 0, run = 0;
  bool run_is_space = false;
  const auto cut_at = [&](size_t at) {
    parts.push_back(text.substr(part_begin, at - part_begin));
    part_begin = at;
  };
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const bool is_space = is_python_space(next_character(text, at));
    if (characters == kMaxCharacters) {
      cut_at(begin);
      characters = run = 0;
    }
    if (run == 0 || is_space != run_is_space) {
      run = 1;
      run_is_space = is_space;
    } else if (++run > kMaxRun) {
      cut_at(begin);
      run = 1;
    }
    ++characters;
  }
  if (part_begin < text.size()) cut_at(text.size());
}

}  // namespace plait
