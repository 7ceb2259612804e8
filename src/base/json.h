// JSON from strangers: parsing under limits, and typed access whose errors name the field.
//
// Plain functions and values; safe from any thread. Numbers, strings and nesting are checked by Boost.JSON (UTF-8
// included); of equal keys the last one counts, as in Python.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>

#include "base/error.h"

namespace plait::json {

struct Limits {
  size_t bytes = size_t{16} << 20;
  size_t depth = 32;  // of nested arrays and objects
};

// The one value that `text` holds. kInvalid: too long, too deep, or not JSON; says at which byte.
Result<boost::json::value> parse(std::string_view text, const Limits& limits = {});
Result<boost::json::object> parse_object(std::string_view text, const Limits& limits = {});
// kNotFound, kIo or kCorrupt; the message begins with the file's path.
Result<boost::json::object> read_object_file(const std::filesystem::path& file, const Limits& limits = {});

// Both ends belong to the range.
struct IntegerRange {
  int64_t min = std::numeric_limits<int64_t>::min();
  int64_t max = std::numeric_limits<int64_t>::max();
};
struct NumberRange {
  double min = std::numeric_limits<double>::lowest();
  double max = std::numeric_limits<double>::max();
};

// One value as a type. The message (kInvalid) says what was expected and what stands there, not where: "must be an
// integer from 1 to 8, not 9". Whole numbers written as 8.0 are integers; true and "8" are not.
Result<int64_t> to_integer(const boost::json::value& value, IntegerRange range = {});
Result<double> to_number(const boost::json::value& value, NumberRange range = {});
Result<bool> to_boolean(const boost::json::value& value);
Result<std::string> to_string(const boost::json::value& value);
// The value for a message: `"abc"`, `12`, `an array of 3`; long strings are cut.
std::string describe(const boost::json::value& value);

// Typed access to the fields of one object, which outlives this view. A field that is null counts as absent.
// Errors are of the given kind and begin with the field's path: "rope_scaling.factor: must be ...".
class Fields {
 public:
  explicit Fields(const boost::json::object& object, ErrorKind kind = ErrorKind::kInvalid, std::string path = {})
      : object_(&object), kind_(kind), path_(std::move(path)) {}

  const boost::json::value* find(std::string_view key) const;  // nullptr: absent or null
  bool has(std::string_view key) const { return find(key) != nullptr; }

  // Absent: nullopt.
  Result<std::optional<int64_t>> integer(std::string_view key, IntegerRange range = {}) const;
  Result<std::optional<double>> number(std::string_view key, NumberRange range = {}) const;
  Result<std::optional<bool>> boolean(std::string_view key) const;
  Result<std::optional<std::string>> string(std::string_view key) const;
  Result<std::optional<Fields>> object(std::string_view key) const;
  // A list of integers, or one integer for a list of one.
  Result<std::optional<std::vector<int64_t>>> integers(std::string_view key, IntegerRange range = {},
                                                       size_t max_count = 4096) const;

  // Absent: an error.
  Result<int64_t> required_integer(std::string_view key, IntegerRange range = {}) const;
  Result<double> required_number(std::string_view key, NumberRange range = {}) const;
  Result<std::string> required_string(std::string_view key) const;

  const boost::json::object& raw() const { return *object_; }
  std::string path_of(std::string_view key) const;
  // An error about the field `key`: "<path of key>: <what>".
  Error error(std::string_view key, std::string_view what) const;

 private:
  const boost::json::object* object_;
  ErrorKind kind_;
  std::string path_;  // of the object itself, with a trailing dot; empty at the top
};

}  // namespace plait::json
