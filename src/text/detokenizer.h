// Turns one request's tokens into text as they come.
//
// Never gives out half a character: bytes of an unfinished UTF-8 sequence wait for the next token (U+FFFD at the end if
// it never comes). Text that might be the beginning of a stop string waits too, and no more than that, so that a stop
// string is found across any chunk border and never shown. The stop string that is complete first matches (of several
// complete at the same place the longest), however the text was cut into tokens. One object per request; not thread
// safe.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace plait {

class StreamingDetokenizer {
 public:
  // `tokenizer` outlives the object. `include_stop`: a matched stop string stays in the text (no_stop_trim).
  StreamingDetokenizer(const Tokenizer* tokenizer, std::vector<std::string> stop_strings, bool skip_special_tokens,
                       bool include_stop);

  // Text that became certain with these tokens; may be empty. After a stop string matched, everything further is
  // ignored.
  std::string push(std::span<const int32_t> ids);
  // What was held back, at the end of the request.
  std::string finish();

  // The stop string that matched, once one did.
  const std::optional<std::string>& matched_stop() const { return matched_stop_; }
  // Tokens pushed up to and including the one that completed the stop string.
  int64_t tokens_used() const { return tokens_used_; }

 private:
  // A stop string and how much of it the end of the text is.
  struct StopString {
    std::string text;
    std::vector<uint32_t> fallback;  // by matched bytes: the next shorter prefix that the same text ends with
    uint32_t matched = 0;            // bytes
  };
  std::string release(std::string_view fresh);
  const StopString* advance(char byte);

  const Tokenizer* tokenizer_;
  std::vector<StopString> stop_strings_;
  bool skip_special_tokens_;
  bool include_stop_;
  std::string incomplete_;  // bytes of an unfinished character
  std::string held_;        // text that may begin a stop string
  std::optional<std::string> matched_stop_;
  int64_t tokens_used_ = 0;
};

}  // namespace plait
