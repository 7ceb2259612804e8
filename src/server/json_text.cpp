#include "server/json_text.h"

#include <boost/json/serialize.hpp>

namespace plait {

void append_escaped(std::string& out, std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  size_t plain_begin = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte >= 0x20 && byte != '"' && byte != '\\') continue;
    out.append(text.substr(plain_begin, i - plain_begin));
    plain_begin = i + 1;
    switch (byte) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        out += "\\u00";
        out += kHex[byte >> 4];
        out += kHex[byte & 15];
    }
  }
  out.append(text.substr(plain_begin));
}

void append_quoted(std::string& out, std::string_view text) {
  out += '"';
  append_escaped(out, text);
  out += '"';
}

void append_logprob(std::string& out, double logprob) {
  // NaN compares false and becomes the least, too
  const double value = logprob > kLeastLogprob ? logprob : kLeastLogprob;
  fmt::format_to(std::back_inserter(out), "{}", static_cast<float>(value));
}

std::string token_text(const Tokenizer* tokenizer, int32_t id) {
  if (tokenizer == nullptr) return {};
  return tokenizer->decode(std::span(&id, 1), false);
}

void append_value(std::string& out, const boost::json::value& value) {
  Separator separator;
  if (const auto* object = value.if_object()) {
    out += '{';
    for (const auto& [name, member] : *object) {
      separator(out);
      append_quoted(out, name);
      out += ':';
      append_value(out, member);
    }
    out += '}';
  } else if (const auto* array = value.if_array()) {
    out += '[';
    for (const boost::json::value& element : *array) {
      separator(out);
      append_value(out, element);
    }
    out += ']';
  } else if (const double* number = value.if_double(); number != nullptr && std::isfinite(*number)) {
    fmt::format_to(std::back_inserter(out), "{}", *number);
  } else {
    out += boost::json::serialize(value);
  }
}

void append_event(std::string& out, std::string_view json) {
  out += "data: ";
  out += json;
  out += "\n\n";
}

void append_event(AnswerText& out, AnswerText&& json) {
  out.text += "data: ";
  out.append(std::move(json));
  out.text += "\n\n";
}

}  // namespace plait
