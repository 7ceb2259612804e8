// Reading fields of JSON objects that strangers wrote: errors name the field and what it should be.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>

#include "base/error.h"

namespace plait {

// kCorrupt if the text is not one JSON object, or nested deeper than any real file. `name` is for the message.
Result<boost::json::value> parse_json_object(std::string_view text, std::string_view name);

// An absent field or null: null pointer.
const boost::json::value* find_field(const boost::json::object& object, std::string_view key);

Result<bool> bool_field(const boost::json::object& object, std::string_view key, bool otherwise);
Result<int64_t> integer_field(const boost::json::object& object, std::string_view key);
Result<std::string_view> string_field(const boost::json::object& object, std::string_view key);
Result<const boost::json::object*> object_field(const boost::json::object& object, std::string_view key);
Result<const boost::json::array*> array_field(const boost::json::object& object, std::string_view key);

// The same result; an error says where it happened: "model: merges[3]: ...".
template <typename T>
Result<T> located(std::string_view where, Result<T> result) {
  if (result.has_error()) return std::move(result).error().within(where);
  return result;
}

}  // namespace plait
