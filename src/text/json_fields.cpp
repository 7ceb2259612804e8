#include "text/json_fields.h"

#include <boost/json/array.hpp>
#include <boost/json/parse.hpp>

namespace plait {
namespace {

constexpr size_t kMaxJsonDepth = 64;

Error wrong_type(std::string_view key, std::string_view expected) {
  return corrupt(fmt::format("{}: {} is expected", key, expected));
}

}  // namespace

Result<boost::json::value> parse_json_object(std::string_view text, std::string_view name) {
  boost::json::parse_options options;
  options.max_depth = kMaxJsonDepth;
  boost::system::error_code error;
  boost::json::value value = boost::json::parse({text.data(), text.size()}, error, {}, options);
  if (error) return corrupt(fmt::format("{} is not JSON: {}", name, error.message()));
  if (!value.is_object()) return corrupt(fmt::format("{} is not a JSON object", name));
  return value;
}

const boost::json::value* find_field(const boost::json::object& object, std::string_view key) {
  const boost::json::value* value = object.if_contains({key.data(), key.size()});
  return value && !value->is_null() ? value : nullptr;
}

Result<bool> bool_field(const boost::json::object& object, std::string_view key, bool otherwise) {
  const boost::json::value* value = find_field(object, key);
  if (!value) return otherwise;
  if (!value->is_bool()) return wrong_type(key, "true or false");
  return value->get_bool();
}

Result<int64_t> integer_field(const boost::json::object& object, std::string_view key) {
  const boost::json::value* value = find_field(object, key);
  if (!value || !value->is_int64()) return wrong_type(key, "an integer");
  return value->get_int64();
}

Result<std::string_view> string_field(const boost::json::object& object, std::string_view key) {
  const boost::json::value* value = find_field(object, key);
  if (!value || !value->is_string()) return wrong_type(key, "a string");
  return std::string_view(value->get_string().data(), value->get_string().size());
}

Result<const boost::json::object*> object_field(const boost::json::object& object, std::string_view key) {
  const boost::json::value* value = find_field(object, key);
  if (!value || !value->is_object()) return wrong_type(key, "an object");
  return &value->get_object();
}

Result<const boost::json::array*> array_field(const boost::json::object& object, std::string_view key) {
  const boost::json::value* value = find_field(object, key);
  if (!value || !value->is_array()) return wrong_type(key, "an array");
  return &value->get_array();
}

}  // namespace plait
