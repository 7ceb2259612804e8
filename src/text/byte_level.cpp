#include "text/byte_level.h"

#include "text/utf8.h"

namespace plait {
namespace {

struct Alphabet {
  std::array<char32_t, 256> character_of{};
  std::array<int16_t, 324> byte_of{};  // by character; -1: none
};

// Printable Latin-1 stands for itself; the other bytes are numbered from U+0100 on.
constexpr Alphabet make_alphabet() {
  Alphabet alphabet;
  alphabet.byte_of.fill(-1);
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const char32_t character = printable ? byte : next++;
    alphabet.character_of[byte] = character;
    alphabet.byte_of[character] = static_cast<int16_t>(byte);
  }
  return alphabet;
}
constexpr Alphabet kAlphabet = make_alphabet();

}  // namespace

std::optional<std::string> bytes_of_written(std::string_view written) {
  std::string bytes;
  bytes.reserve(written.size());
  for (size_t at = 0; at < written.size();) {
    const char32_t character = next_character(written, at);
    if (character >= kAlphabet.byte_of.size() || kAlphabet.byte_of[character] < 0) return std::nullopt;
    bytes += static_cast<char>(kAlphabet.byte_of[character]);
  }
  return bytes;
}

std::string written_of_bytes(std::string_view bytes) {
  std::string written;
  for (const char byte : bytes) append_utf8(written, kAlphabet.character_of[static_cast<unsigned char>(byte)]);
  return written;
}

}  // namespace plait
