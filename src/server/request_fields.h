// Reads the fields of a request's JSON object: types, ranges and sizes are checked where a field is read.
//
// A field that is absent or null gives nothing, as OpenAI's clients expect. The first violation is kept and names the
// field; reading goes on, so a parser lists its fields and asks for error() once at the end. Fields that nobody reads
// are ignored. Views into the parsed body; not thread safe.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/value.hpp>

#include "server/api_error.h"

namespace plait {

inline constexpr size_t kMaxJsonDepth = 64;

// The body as a JSON object: 400 for anything else (syntax, depth beyond kMaxJsonDepth, NaN, another type).
ApiResult<boost::json::object> parse_json_body(std::string_view body);

struct NumberRange {
  double low = -std::numeric_limits<double>::max();
  double high = std::numeric_limits<double>::max();
  bool above_low = false;  // low itself is excluded
};

struct IntegerRange {
  int64_t low = 0;
  int64_t high = std::numeric_limits<int64_t>::max();
};

class RequestFields {
 public:
  // `path` names the object in messages: "" for the body, "messages[2]" for a part of it.
  explicit RequestFields(const boost::json::object& object, std::string path = {})
      : object_(object), path_(std::move(path)) {}

  const boost::json::value* value(std::string_view name) const;  // nullptr: absent or null
  std::optional<bool> boolean(std::string_view name);
  std::optional<int64_t> integer(std::string_view name, IntegerRange range);
  std::optional<double> number(std::string_view name, NumberRange range);
  std::optional<std::string> text(std::string_view name, size_t max_bytes = std::numeric_limits<size_t>::max());
  const boost::json::object* object(std::string_view name);
  const boost::json::array* array(std::string_view name, size_t max_size = std::numeric_limits<size_t>::max());
  // A string, or an array of at most `max_count` strings.
  std::vector<std::string> texts(std::string_view name, size_t max_count, size_t max_bytes);
  // Token ids in [0, vocab_size).
  std::vector<int32_t> token_ids(std::string_view name, size_t max_count, int64_t vocab_size);

  // 400 unless the field is absent, null, false or empty.
  void refuse(std::string_view name, std::string_view why);

  std::string path_of(std::string_view name) const;
  void fail(std::string_view name, std::string_view problem);  // "<path>.<name> <problem>"
  void fail(ApiError error);
  // Takes over the first violation of a reader of a part.
  void absorb(const RequestFields& part);
  const std::optional<ApiError>& error() const { return error_; }
  ApiStatus status() const;

 private:
  const boost::json::object& object_;
  std::string path_;
  std::optional<ApiError> error_;
};

// An array of token ids in [0, vocab_size); `path` names it in errors.
ApiResult<std::vector<int32_t>> as_token_ids(const boost::json::array& array, std::string_view path,
                                             int64_t vocab_size);

}  // namespace plait
