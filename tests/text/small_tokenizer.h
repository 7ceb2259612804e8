// The smallest tokenizer.json that is complete: one token for each byte. Tests change what they are about.
#pragma once

#include <string>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "text/byte_level.h"

namespace plait {

inline std::string written_byte(int byte) {
  return written_of_bytes(std::string(1, static_cast<char>(byte)));
}

inline boost::json::object small_tokenizer() {
  boost::json::object vocab;
  for (int byte = 0; byte < 256; ++byte) vocab[written_byte(byte)] = byte;
  return {{"added_tokens", boost::json::array()},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", boost::json::array()}}}};
}

}  // namespace plait
