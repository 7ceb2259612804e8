// Random text for property tests: weighted towards what splitters and decoders find difficult.
#pragma once

#include <random>
#include <string>
#include <string_view>

#include "text/utf8.h"

namespace plait {

class RandomText {
 public:
  explicit RandomText(uint64_t seed) : random_(seed) {}

  size_t below(size_t bound) { return std::uniform_int_distribution<size_t>(0, bound - 1)(random_); }

  char32_t character() {
    constexpr std::u32string_view kBlanks = U" \t\n\r\v\f\u00a0\u3000\u2028\u0085\u180e\u001c";
    constexpr std::u32string_view kDifficult =
        U"\u0301\u0300\u200d\u200b\ufeff\u30fc\u30fb\u3005\u3006\u3007\u3400\u302a\u01c5\u01c8\u017f\u212a'"
        U"st\u00bd\u00b2"
        U"\u2167\u0660\u0600\u4e00\u9fa5\u9fa6\u3040\u30ff\u3100\U00016ff0\U00020000\U0001f600\U000e0001\U0010ffff";
    switch (below(10)) {
      case 0:
      case 1:
      case 2:
        return static_cast<char32_t>(' ' + below(95));
      case 3:
      case 4:
        return kBlanks[below(kBlanks.size())];
      case 5:
        return kDifficult[below(kDifficult.size())];
      case 6:
        return static_cast<char32_t>(0x80 + below(0x580));
      case 7:
        return static_cast<char32_t>(0x3000 + below(0x7000));
      case 8:
        return static_cast<char32_t>("0123456789'\"_-/"[below(15)]);
      default:
        const auto any = static_cast<char32_t>(below(0x110000 - 0x800));
        return any < 0xD800 ? any : any + 0x800;
    }
  }

  std::string text(size_t max_characters) {
    std::string text;
    for (size_t n = below(max_characters + 1); n > 0; --n) append_utf8(text, character());
    return text;
  }

  // Bytes that are mostly no UTF-8, with characters between.
  std::string bytes(size_t max_pieces) {
    std::string bytes;
    for (size_t n = below(max_pieces + 1); n > 0; --n) {
      if (below(2) == 0) {
        append_utf8(bytes, character());
        if (below(3) == 0) bytes.pop_back();
      } else {
        bytes += static_cast<char>(below(256));
      }
    }
    return bytes;
  }

 private:
  std::mt19937_64 random_;
};

}  // namespace plait
