// GPT-2's spelling of bytes: vocabularies write each byte as one printable character, a space as "Ġ".
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace plait {

// The bytes that a token written in this alphabet stands for; nothing if a character is not of the alphabet.
// `written` is well-formed UTF-8.
std::optional<std::string> bytes_of_written(std::string_view written);
std::string written_of_bytes(std::string_view bytes);

}  // namespace plait
