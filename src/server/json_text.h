// Pieces of JSON text and server-sent events, appended to strings: what is written once per token must be cheap.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <boost/json/value.hpp>

#include "server/answer_text.h"
#include "text/tokenizer.h"

namespace plait {

void append_escaped(std::string& out, std::string_view text);  // as inside a JSON string, without the quotes
void append_quoted(std::string& out, std::string_view text);
// JSON has no infinities: below kLeastLogprob (a token that was impossible) counts as kLeastLogprob, as at OpenAI.
inline constexpr double kLeastLogprob = -9999.0;
void append_logprob(std::string& out, double logprob);
// The token as text, U+FFFD for bytes that are no whole character. Empty without a tokenizer.
std::string token_text(const Tokenizer* tokenizer, int32_t id);

// Like boost::json::serialize, with numbers as people write them: 0.317 and not 3.17E-1.
void append_value(std::string& out, const boost::json::value& value);

void append_event(std::string& out, std::string_view json);  // "data: <json>\n\n"
void append_event(AnswerText& out, AnswerText&& json);
inline constexpr std::string_view kDoneEvent = "data: [DONE]\n\n";

// Puts a comma between elements, not before the first.
class Separator {
 public:
  void operator()(std::string& out) {
    if (!first_) out += ',';
    first_ = false;
  }

 private:
  bool first_ = true;
};

}  // namespace plait
