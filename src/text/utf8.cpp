#include "text/utf8.h"

namespace plait {
namespace {

// Bounds of the second byte depend on the first (table 3-7 of the Unicode standard): they exclude overlong forms,
// surrogates and values above U+10FFFF.
struct LeadByte {
  int length;  // 0: no character begins with it
  unsigned char second_min = 0x80, second_max = 0xBF;
};

LeadByte lead_byte(unsigned char byte) {
  if (byte < 0x80) return {1};
  if (byte < 0xC2) return {0};
  if (byte < 0xE0) return {2};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0};
}

// Bytes of ASCII at the front, in steps of 8.
size_t ascii_prefix(std::string_view text) {
  size_t at = 0;
  for (uint64_t eight; at + 8 <= text.size(); at += 8) {
    std::memcpy(&eight, text.data() + at, 8);
    if (eight & 0x8080808080808080u) break;
  }
  return at;
}

// Repairs `text` into `out`; returns where the unfinished character at its end begins.
size_t repair_into(std::string_view text, std::string& out) {
  out.reserve(out.size() + text.size());
  size_t at = 0;
  while (at < text.size()) {
    if (const size_t ascii = ascii_prefix(text.substr(at))) {
      out.append(text, at, ascii);
      at += ascii;
      continue;
    }
    const Utf8Unit unit = utf8_unit(text.substr(at));
    if (unit.kind == Utf8Kind::kUnfinished) break;
    out.append(unit.kind == Utf8Kind::kCharacter ? text.substr(at, unit.bytes) : kReplacementCharacter);
    at += unit.bytes;
  }
  return at;
}

}  // namespace

Utf8Unit utf8_unit(std::string_view text) {
  const LeadByte lead = lead_byte(static_cast<unsigned char>(text[0]));
  if (lead.length == 0) return {Utf8Kind::kMalformed, 1};
  const size_t length = static_cast<size_t>(lead.length);
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Kind::kUnfinished, i};
    const auto byte = static_cast<unsigned char>(text[i]);
    const bool fits = i == 1 ? byte >= lead.second_min && byte <= lead.second_max : (byte & 0xC0) == 0x80;
    if (!fits) return {Utf8Kind::kMalformed, i};
  }
  return {Utf8Kind::kCharacter, length};
}

bool is_utf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (const size_t ascii = ascii_prefix(text.substr(at))) {
      at += ascii;
      continue;
    }
    const Utf8Unit unit = utf8_unit(text.substr(at));
    if (unit.kind != Utf8Kind::kCharacter) return false;
    at += unit.bytes;
  }
  return true;
}

std::string repair_utf8(std::string_view text) {
  std::string out;
  if (repair_into(text, out) < text.size()) out += kReplacementCharacter;
  return out;
}

std::string take_utf8(std::string& bytes) {
  std::string out;
  bytes.erase(0, repair_into(bytes, out));
  return out;
}

void append_utf8(std::string& text, char32_t character) {
  const auto put = [&](char32_t byte) { text += static_cast<char>(byte); };
  if (character < 0x80) return put(character);
  if (character < 0x800) {
    put(0xC0 | character >> 6);
  } else if (character < 0x10000) {
    put(0xE0 | character >> 12);
    put(0x80 | (character >> 6 & 0x3F));
  } else {
    put(0xF0 | character >> 18);
    put(0x80 | (character >> 12 & 0x3F));
    put(0x80 | (character >> 6 & 0x3F));
  }
  put(0x80 | (character & 0x3F));
}

}  // namespace plait
