// Unicode properties of characters, as the splitters need them.
//
// The table is made once, on first use, from the same library that matches the regexes, so that both agree on every
// character. Safe from any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace plait {

enum CharacterClass : uint8_t {
  kLetter = 1,         // \p{L}
  kMark = 2,           // \p{M}
  kNumber = 4,         // \p{N}
  kPunctuation = 8,    // \p{P} and \p{S}
  kSpace = 16,         // \s
  kHan = 32,           // \p{Han}
  kUpperOrTitle = 64,  // \p{Lu} and \p{Lt}
  kLower = 128,        // \p{Ll}
};

// CharacterClass bits of each code point: [0x110000].
const uint8_t* character_classes();

bool is_white_space(char32_t character);     // \s
bool is_word_character(char32_t character);  // \w: letters, marks, decimal digits, connectors, joiners

}  // namespace plait
